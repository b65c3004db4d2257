"""Auth: who is calling.

Either every request carries a token, or the server listens on loopback alone and asks for none;
then it must not be a way for a web page in a browser on the same machine to reach the sandboxes.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from vmpool.errors import ForbiddenError, HostError, UnauthorizedError
from vmpool.sandbox import Sandbox

if TYPE_CHECKING:
    from aiohttp import web

    from vmpool.host import Host

LOCAL_OWNER: Final = "local"
"""Owner of everything on a server without tokens."""

MAX_TOKEN_LENGTH: Final = 512


class Access(Enum):
    """Who may use a route."""

    OPEN = "anyone"
    OWNER = "whoever holds a token"
    SANDBOX = "whoever holds a token, or the sandbox's own access token"


class Admission(Enum):
    """How a server decides whom to let in."""

    TOKENS = "tokens"
    LOOPBACK = "loopback"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who is calling.

    Attributes:
        owner: Id of the token, or of the token that made the sandbox.
        sandbox: The only sandbox that the caller may use, `None` for all that are the owner's.
    """

    owner: str
    sandbox: Sandbox | None = None


async def admit(
    host: Host, request: web.Request, *, admission: Admission, access: Access
) -> Caller:
    """Return who is calling.

    Raises:
        UnauthorizedError: `token_missing` or `token_invalid`.
        ForbiddenError: `foreign_host` or `cross_origin`, on a server without tokens.
    """
    if admission is Admission.LOOPBACK:
        _refuse_browsers(request)
        return Caller(owner=LOCAL_OWNER)
    if access is Access.OPEN:
        return Caller(owner="")
    token = _bearer(request)
    if access is Access.SANDBOX:
        sandbox = await host.sandbox_by_access_token(request.match_info["id"], token)
        if sandbox is not None:
            return Caller(owner=sandbox.owner, sandbox=sandbox)
    owner = await host.store.verify_token(token)
    if owner is None:
        raise UnauthorizedError(
            "the token is not valid here",
            code="token_invalid",
            remedy="make one with: vmpool token create",
        )
    return Caller(owner=owner)


def _bearer(request: web.Request) -> str:
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise UnauthorizedError(
            "the request has no token",
            code="token_missing",
            remedy="send the header 'Authorization: Bearer TOKEN'; make a token with: "
            "vmpool token create",
        )
    if len(token) > MAX_TOKEN_LENGTH or not token.isascii():
        raise UnauthorizedError("the token is not valid here", code="token_invalid")
    return token


def _refuse_browsers(request: web.Request) -> None:
    """Refuse what a web page could make a browser send to this machine.

    A page of another site gives itself away by `Origin`; one whose name was made to resolve to
    127.0.0.1 (DNS rebinding) by `Host`.
    """
    authority = request.headers.get("Host", "")
    if not is_loopback(_host_of(authority)):
        raise ForbiddenError(
            f"host {authority[:200]!r} is not this machine's own name",
            code="foreign_host",
            remedy="use http://127.0.0.1, or start the server with tokens",
        )
    origin = request.headers.get("Origin")
    if origin is not None and origin.lower() != f"http://{authority}".lower():
        raise ForbiddenError(
            f"requests of web pages of {origin[:200]!r} are refused",
            code="cross_origin",
            remedy="start the server with tokens",
        )


def _host_of(authority: str) -> str:
    try:
        return urlsplit(f"//{authority}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address can only be this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_listen(host: str, admission: Admission) -> None:
    """Refuse to serve without tokens where others could reach the server.

    Raises:
        HostError: `tokens_required`.
    """
    if admission is Admission.LOOPBACK and not is_loopback(host):
        raise HostError(
            f"without tokens the server listens on loopback only, not on {host!r}",
            code="tokens_required",
            remedy="listen on 127.0.0.1, or leave tokens on",
        )
