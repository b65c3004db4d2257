"""File signature: what makes a URL open one file of one sandbox, one way, until it ends.

Pure. Made with the sandbox's own access token, which it does not show.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from vmpool.errors import UnauthorizedError

if TYPE_CHECKING:
    from collections.abc import Mapping

Method = Literal["GET", "PUT"]

_MOST: Final = 64
"""Characters of a signature, which has 43, that are looked at."""
_SECONDS: Final = re.compile("[0-9]{1,12}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What one URL opens.

    Attributes:
        user: The account in the guest whose rights hold.
        expires: Unix seconds.
        mode: Permission bits that a file is written with, as the URL has them; empty for none.
    """

    method: str
    path: str
    user: str
    expires: int
    mode: str = ""

    def sign(self, token: str) -> str:
        """Return the signature that a sandbox's access token makes of it."""
        told = json.dumps([self.method, self.path, self.user, self.expires, self.mode]).encode()
        digest = hmac.digest(token.encode(), told, hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def is_signed(query: Mapping[str, str]) -> bool:
    """Whether a request brings a signature."""
    return "signature" in query


def require(method: str, query: Mapping[str, str], token: str, *, user: str, now: float) -> None:
    """Refuse a request whose signature was not made with a token for it, or has ended.

    Args:
        query: Of the request, decoded.
        token: The sandbox's access token; empty for one that nobody can tell, which signs nothing.
        user: The account where the query names none.
        now: Unix time in seconds.

    Raises:
        UnauthorizedError: `signature_invalid` or `signature_expired`.
    """
    expires = query.get("expires", "")
    if not token or _SECONDS.fullmatch(expires) is None:
        raise _invalid()
    wanted = Opened(
        method="GET" if method == "HEAD" else method,
        path=query.get("path", ""),
        user=query.get("user", user),
        expires=int(expires),
        mode=query.get("mode", ""),
    )
    given = query["signature"][:_MOST].encode("utf-8", "surrogateescape")
    if not hmac.compare_digest(given, wanted.sign(token).encode()):
        raise _invalid()
    if wanted.expires < now:
        raise UnauthorizedError(
            "the signed URL has ended", code="signature_expired", remedy="have it made anew"
        )


def _invalid() -> UnauthorizedError:
    return UnauthorizedError(
        "the URL was not signed for this", code="signature_invalid", remedy="have it made anew"
    )
