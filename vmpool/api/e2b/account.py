"""Account: whose rights in the guest a request of E2B's clients asks for.

They say it as the user of an `Authorization: Basic` whose password is empty; it proves nothing and
need not: who holds the sandbox's token may be anybody in it.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Final

from vmpool.api.e2b.defaults import Defaults
from vmpool.errors import InvalidRequestError
from vmpool.model import DEFAULT_USER

if TYPE_CHECKING:
    from vmpool.api.e2b.visit import Visit

_NAME: Final = re.compile(r"[^\x00-\x20:/\x7f]{1,64}")


def account_of(visit: Visit) -> str:
    """Return the account that a request names in its header, or that of the sandbox's template.

    Raises:
        InvalidRequestError: `unknown_user`, or `invalid_request` when the header cannot be read.
    """
    usual = Defaults.of(visit.sandbox.environment).user
    scheme, _, credentials = visit.request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return usual
    try:
        said = base64.b64decode(credentials.strip(), validate=True).decode()
    except (binascii.Error, ValueError) as err:
        raise InvalidRequestError("the header 'authorization' is no name in base64") from err
    name, colon, _ = said.partition(":")
    if not colon:
        raise InvalidRequestError("the header 'authorization' has no colon behind the name")
    return check_account(name, usual=usual)


def check_account(name: str, *, usual: str = DEFAULT_USER) -> str:
    """Return the account of a name, the usual one for none.

    Raises:
        InvalidRequestError: `unknown_user`; no account can be called so.
    """
    if not name:
        return usual
    if not _NAME.fullmatch(name):
        raise InvalidRequestError(f"invalid username: {name[:64]!r}", code="unknown_user")
    return name
