"""File URLs: addresses that open one file of a sandbox for whoever has them, until they end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import urlencode

from msgspec import Meta, Struct

from vmpool.api import views
from vmpool.api.bodies import Account, FileMode, GuestPath
from vmpool.api.file_signature import Method, Opened
from vmpool.api.limits import check_path
from vmpool.api.route import answer
from vmpool.errors import ConflictError, InvalidRequestError
from vmpool.model import DEFAULT_USER

if TYPE_CHECKING:
    from aiohttp import web

    from vmpool.api.route import Call

LONGEST_SECONDS: Final = 7 * 86_400
"""What was handed out cannot be taken back while its sandbox lives."""

Signature = Annotated[str, Meta(description="From a signed URL", max_length=128)]
Expires = Annotated[int, Meta(description="From a signed URL: Unix seconds", ge=0, lt=10**12)]


class SignFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which file, which way, as whom, for how many seconds; `mode` is what `PUT` writes it with."""

    path: GuestPath
    method: Method = "GET"
    user: Account = DEFAULT_USER
    mode: FileMode | None = None
    timeout: Annotated[int, Meta(ge=1, le=LONGEST_SECONDS)] = 3600


class SignedFile(Struct, frozen=True, kw_only=True):
    """A URL, from the server's root on, that needs no token."""

    url: str
    method: Method
    expires_at: str


class ReadQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which file, and as whom; or all that a signed URL has."""

    path: GuestPath
    user: Account = DEFAULT_USER
    expires: Expires | None = None
    signature: Signature | None = None


class WriteQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which file, as whom, with which permission bits (420 is 0644); or what a signed URL has."""

    path: GuestPath
    user: Account = DEFAULT_USER
    mode: FileMode | None = None
    expires: Expires | None = None
    signature: Signature | None = None


async def sign(call: Call, body: SignFile) -> web.Response:
    """Sign the URL of a file; whether that is there, is seen when it is used."""
    path = check_path(body.path)
    if body.mode is not None and body.method != "PUT":
        raise InvalidRequestError("'mode' is for a file that is written", remedy="leave it out")
    mode = "" if body.mode is None else str(body.mode)
    id = call.request.match_info["id"]
    sandbox = await call.host.sandbox(id, owner=call.caller.owner)
    if not sandbox.access_token:
        raise ConflictError(
            f"the access token of sandbox {id!r} is not known any more",
            code="access_token_lost",
            remedy="create another one",
        )
    expires = int(time.time()) + body.timeout
    opened = Opened(method=body.method, path=path, user=body.user, expires=expires, mode=mode)
    detail = {"path": path, "method": body.method, "user": body.user}
    call.host.audit(call.caller.owner, "file.sign", id, detail)
    query = {
        "path": path,
        "user": body.user,
        **({"mode": mode} if mode else {}),
        "expires": str(expires),
        "signature": opened.sign(sandbox.access_token),
    }
    return answer(
        SignedFile(
            url=f"/v1/sandboxes/{id}/files?{urlencode(query)}",
            method=body.method,
            expires_at=views.rfc3339(expires * 10**9),
        )
    )
