"""Auth: who is calling.

Either every request carries a token, or the server listens on loopback alone and asks for none;
then it must not be a way for a web page in a browser on the same machine to reach the sandboxes.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from vmpool.address import Address
from vmpool.api import file_signature
from vmpool.api.fronts import by_host
from vmpool.errors import ForbiddenError, HostError, UnauthorizedError
from vmpool.model import DEFAULT_USER
from vmpool.sandbox import Sandbox
from vmpool.scope import Scope
from vmpool.store import LOCAL, TokenRow

if TYPE_CHECKING:
    from aiohttp import web

    from vmpool.host import Host

MAX_TOKEN_LENGTH: Final = 512

RECENT_SECONDS: Final = 2.0
"""How long a token that was good is taken to be: asking the journal costs a change of threads."""

RECENT_TOKENS: Final = 4096


class Access(Enum):
    """Who may use a route."""

    OPEN = "anyone"
    TOKEN = "whoever holds a token"  # noqa: S105 -- who, not what
    OWNER = "whoever holds a token with the scope sandboxes"
    SANDBOX = "whoever holds a token with the scope sandboxes, or the sandbox's own access token"
    FILE = (
        "whoever holds a token with the scope sandboxes, the sandbox's own access token, or a URL"
        " that was signed for the file"
    )
    TEMPLATES = "whoever holds a token with the scope templates"
    AUDIT = "whoever holds a token with the scope audit"
    METRICS = "whoever holds a token with the scope metrics"
    OPERATOR = "whoever holds a token with the scope operator"

    @property
    def scope(self) -> Scope | None:
        """What a token must have; `None` where any does."""
        return _SCOPES.get(self)


_SCOPES: Final = {
    Access.OWNER: Scope.SANDBOXES,
    Access.SANDBOX: Scope.SANDBOXES,
    Access.FILE: Scope.SANDBOXES,
    Access.TEMPLATES: Scope.TEMPLATES,
    Access.AUDIT: Scope.AUDIT,
    Access.METRICS: Scope.METRICS,
    Access.OPERATOR: Scope.OPERATOR,
}


class Admission(Enum):
    """How a server decides whom to let in."""

    TOKENS = "tokens"
    LOOPBACK = "loopback"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who is calling.

    Attributes:
        owner: Id of the tenant; empty for one that nobody asked who it is.
        token_id: Of its token; `None` where none was asked for, and for a sandbox's own.
        scopes: What it may do.
        sandbox: The only sandbox that the caller may use, `None` for all that are the owner's.
    """

    owner: str
    token_id: str | None = None
    scopes: frozenset[Scope] = frozenset()
    sandbox: Sandbox | None = None

    @property
    def operates(self) -> bool:
        """Whether what is everybody's is the caller's to change."""
        return Scope.OPERATOR in self.scopes

    @property
    def bearer(self) -> str:
        """Whose token it is: the tenant's, or one sandbox's, whose bearer may be a stranger."""
        return self.owner if self.sandbox is None else f"{self.owner}/{self.sandbox.id}"


class Gate:
    """The way into one server.

    Args:
        host: Who knows tokens and sandboxes.
        admission: Whether tokens are asked for.
    """

    def __init__(self, host: Host, admission: Admission) -> None:
        self._host = host
        self._admission = admission
        self._recent: dict[bytes, tuple[TokenRow, float]] = {}

    async def admit(
        self,
        request: web.Request,
        access: Access,
        *,
        sandbox_id: str | None = None,
        token: str | None = None,
    ) -> Caller:
        """Return who is calling.

        Args:
            sandbox_id: The sandbox that is asked for, where the path does not name it.
            token: What was shown, where that does not stand in `Authorization`.

        Raises:
            UnauthorizedError: `token_missing` or `token_invalid`.
            ForbiddenError: `scope_missing`; or `foreign_host` or `cross_origin`, on a server
                without tokens.
        """
        if self._admission is Admission.LOOPBACK:
            _refuse_browsers(request, self._host.settings.api.domain)
            return Caller(owner=LOCAL, scopes=frozenset(Scope))
        if access is Access.OPEN:
            return Caller(owner="")
        if access is Access.FILE and file_signature.is_signed(request.query):
            return self._signed(request)
        token = _bearer(request) if token is None else _checked(token)
        if access in {Access.SANDBOX, Access.FILE}:
            id = sandbox_id or request.match_info["id"]
            sandbox = await self._host.sandbox_by_access_token(id, token)
            if sandbox is not None:
                return Caller(owner=sandbox.owner, sandbox=sandbox)
        row = await self._row(token)
        if access.scope is not None and access.scope not in row.scopes:
            raise ForbiddenError(
                f"this takes a token with the scope {access.scope.value!r}; yours has"
                f" {', '.join(sorted(row.scopes)) or 'none'}",
                code="scope_missing",
                remedy="make one on the server's host: vmpool token create"
                f" --scope {access.scope.value}",
            )
        return Caller(owner=row.tenant_id, token_id=row.id, scopes=row.scopes)

    def _signed(self, request: web.Request) -> Caller:
        """Return the caller that a signed URL is.

        Raises:
            UnauthorizedError: `signature_invalid`, also when there is no such sandbox any more;
                `signature_expired`.
        """
        sandbox = self._host.ports.living(request.match_info["id"])
        token = "" if sandbox is None else sandbox.access_token
        file_signature.require(
            request.method, request.query, token, user=DEFAULT_USER, now=time.time()
        )
        assert sandbox is not None
        return Caller(owner=sandbox.owner, sandbox=sandbox)

    async def _row(self, token: str) -> TokenRow:
        """Return a good token's row; the journal is asked once in `RECENT_SECONDS`."""
        digest, now = hashlib.sha256(token.encode()).digest(), time.monotonic()
        recent = self._recent.get(digest)
        if recent is not None and now < recent[1]:
            return recent[0]
        row = await self._host.store.tokens.find(token)
        if row is None:
            self._recent.pop(digest, None)
            raise UnauthorizedError(
                "the token is not valid here",
                code="token_invalid",
                remedy="make one with: vmpool token create",
            )
        if len(self._recent) >= RECENT_TOKENS:
            self._recent.clear()
        self._recent[digest] = row, now + RECENT_SECONDS
        return row


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
    return _checked(token)


def _checked(token: str) -> str:
    """Return a token that may be one, before anything is asked about it."""
    if len(token) > MAX_TOKEN_LENGTH or not token.isascii():
        raise UnauthorizedError("the token is not valid here", code="token_invalid")
    return token


def _refuse_browsers(request: web.Request, domain: str) -> None:
    """Refuse what a web page could make a browser send to this machine.

    A page of another site gives itself away by `Origin`; one whose name was made to resolve to
    127.0.0.1 (DNS rebinding) by `Host`. Names of ports below our own `domain` lead to those alone.
    """
    authority = request.headers.get("Host", "")
    if not _is_loopback(_host_of(authority)) and by_host(authority, domain) is None:
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


def _is_loopback(host: str) -> bool:
    return Address(host=host.lower(), port=0).loopback


def check_listen(host: str, admission: Admission) -> None:
    """Refuse to serve without tokens where others could reach the server.

    Raises:
        HostError: `tokens_required`.
    """
    if admission is Admission.LOOPBACK and not _is_loopback(host):
        raise HostError(
            f"without tokens the server listens on loopback only, not on {host!r}",
            code="tokens_required",
            remedy="listen on 127.0.0.1, or leave tokens on",
        )
