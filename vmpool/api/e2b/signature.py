"""Signature: what lets whoever holds a URL read or write one file, as E2B's clients make it.

Pure. It is made of the sandbox's own access token and says path, direction, account and, if it is
to end, when; so it opens nothing else, and nothing in any other sandbox.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from vmpool.api.limits import PATH_BYTES
from vmpool.errors import InvalidRequestError, UnauthorizedError

if TYPE_CHECKING:
    from collections.abc import Mapping

PATH: Final = "/files"
"""The only path whose requests may be signed."""

Direction = Literal["read", "write"]

_DIRECTIONS: Final[Mapping[str, Direction]] = {"GET": "read", "HEAD": "read", "POST": "write"}
_VERSION: Final = "v1_"
_MOST: Final = 128
"""Characters of a signature, which has 46, that are looked at."""
_SECONDS: Final = re.compile("[0-9]{1,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signed:
    """A request that brings a signature.

    Attributes:
        begun: The digest of what was signed, up to the token; nobody updates it.
        expiration: When it ends, in Unix seconds as written; `None` for never.
    """

    begun: hashlib._Hash
    expiration: str | None
    signature: str

    def made_with(self, token: str) -> bool:
        """Whether it was made with a sandbox's access token; with none, it was not."""
        expected = _ended(self.begun, token, self.expiration).encode()
        given = self.signature[:_MOST].encode("utf-8", "surrogateescape")
        return bool(token) and secrets.compare_digest(given, expected)

    def require(self, token: str, *, now: float) -> None:
        """Refuse one that was made otherwise, or has ended.

        Args:
            token: The access token of the sandbox that is asked for.
            now: Unix time in seconds.

        Raises:
            UnauthorizedError: `signature_invalid` or `signature_expired`.
        """
        if not self.made_with(token):
            raise UnauthorizedError("invalid signature", code="signature_invalid")
        if self.expiration is not None and int(self.expiration) < now:
            raise UnauthorizedError("signature is already expired", code="signature_expired")


def read(method: str, path: str, query: Mapping[str, str]) -> Signed | None:
    """Return what a request for a file brings; `None` for one that is not signed.

    Args:
        path: Of the URL.
        query: Of the URL, decoded; the first of each name counts, here and where it is used.

    Raises:
        InvalidRequestError: `signature_malformed`; it names no file, or no time that there is.
            `invalid_path`; no file has a name that long.
    """
    signature = query.get("signature")
    direction = _DIRECTIONS.get(method)
    if path != PATH or direction is None or not signature:
        return None
    file = query.get("path", "")
    if not file:
        # One without would be good for all files: their names stand in the body.
        raise InvalidRequestError("a signature is for one path", code="signature_malformed")
    if len(file.encode("utf-8", "surrogateescape")) > PATH_BYTES:
        raise InvalidRequestError(f"the path is over {PATH_BYTES} bytes", code="invalid_path")
    expiration = query.get("signature_expiration")
    if expiration is not None and _SECONDS.fullmatch(expiration) is None:
        raise InvalidRequestError(
            f"signature_expiration {expiration[:64]!r} is no time in Unix seconds",
            code="signature_malformed",
        )
    return Signed(
        begun=_begun(file, direction, query.get("username", "")),
        expiration=expiration,
        signature=signature,
    )


def sign(
    path: str, direction: Direction, username: str, token: str, *, expiration: str | None = None
) -> str:
    """Return the signature of a request."""
    return _ended(_begun(path, direction, username), token, expiration)


def _begun(path: str, direction: Direction, username: str) -> hashlib._Hash:
    """Return what all tokens have in common: of whom nobody knows, every sandbox is asked."""
    prefix = f"{path}:{direction}:{username}:"
    return hashlib.sha256(prefix.encode("utf-8", "surrogateescape"))


def _ended(begun: hashlib._Hash, token: str, expiration: str | None) -> str:
    digest = begun.copy()
    digest.update(token.encode() if expiration is None else f"{token}:{expiration}".encode())
    return _VERSION + base64.b64encode(digest.digest()).decode().rstrip("=")
