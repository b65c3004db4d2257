"""Reach: requests for a port of a sandbox, by path and by host name, from the door to the proxy.

Who may reach a port is asked in this order: does a traffic token open it, is it public, and then as
everywhere else. What opened it never reaches the guest.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web

from vmpool import auditing
from vmpool.api import edge, fronts, tcp
from vmpool.api.auth import Access
from vmpool.api.door import DOOR
from vmpool.api.fronts import TRAFFIC_TOKEN_HEADERS, Front
from vmpool.api.intake import continue_later
from vmpool.api.proxy import Afterwards, Proxy
from vmpool.api.traffic import CONNECTIONS
from vmpool.errors import ForbiddenError
from vmpool.ports import TOKEN_PREFIX
from vmpool.store import is_token

if TYPE_CHECKING:
    from vmpool.api.auth import Gate
    from vmpool.api.limits import Limits
    from vmpool.host import Host
    from vmpool.sandbox import Sandbox

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PATH: Final = "/v1/sandboxes/{id}/ports/{port}/{path}"
_BELOW: Final = PATH.replace("{port}", "{port:[1-9][0-9]{0,4}}").replace("{path}", "{path:.*}")
_TCP: Final = tcp.PATH.replace("{port}", "{port:[1-9][0-9]{0,4}}")
BY_HOST: Final = "port by host name"
"""What the log and the metrics call it, whatever the path."""
_MOST_PORT: Final = (1 << 16) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """Somebody who may reach a port.

    Attributes:
        owner: Whose sandbox it is.
        afterwards: What becomes of the connection: those of strangers would be kept from others.
    """

    owner: str
    afterwards: Afterwards


class Reach:
    """The ports of one server's sandboxes."""

    def __init__(self, host: Host, limits: Limits, gate: Gate) -> None:
        self._host = host
        self._limits = limits
        self._gate = gate

    def mount(self, app: web.Application) -> None:
        """Serve ports by path, and over WebSockets that carry their bytes."""
        app.router.add_route("*", _BELOW, self._by_path, expect_handler=continue_later)
        app.router.add_get(_TCP, self._carry, allow_head=False)

    def middleware(self) -> Callable[..., Awaitable[web.StreamResponse]]:
        """Return what serves ports by host name, whatever the path; others pass."""

        @web.middleware
        async def by_host(request: web.Request, handler: Handler) -> web.StreamResponse:
            front = fronts.by_host(request.headers.get("Host", ""), self._host.settings.api.domain)
            if front is None:
                return await handler(request)
            request[edge.ROUTE] = BY_HOST
            return await self.serve(request, front)

        return by_host

    async def admit(self, request: web.Request, sandbox_id: str, port: int) -> Visit:
        """Return who may reach a port and wants to.

        Raises:
            UnauthorizedError, ForbiddenError: As `Gate.admit`; nobody learns from it whether there
                is such a sandbox.
        """
        ports = self._host.ports
        for name in TRAFFIC_TOKEN_HEADERS:
            if token := request.headers.get(name):
                opened = await ports.opened_by(token, sandbox_id=sandbox_id, port=port)
                if opened is not None:
                    return Visit(owner=opened.owner, afterwards=Afterwards.KEEP)
        public = await ports.open_to_all(sandbox_id=sandbox_id, port=port)
        if public is not None:
            return Visit(owner=public.owner, afterwards=Afterwards.CLOSE)
        caller = await self._gate.admit(request, Access.SANDBOX, sandbox_id=sandbox_id)
        auditing.BY.set(caller.token_id)
        return Visit(owner=caller.owner, afterwards=Afterwards.KEEP)

    async def _by_path(self, request: web.Request) -> web.StreamResponse:
        request[edge.ROUTE] = PATH
        id, port = _named(request)
        if "Service-Worker" in request.headers:
            raise ForbiddenError(
                "no script of a guest serves the interface's own origin",
                code="service_worker_refused",
                remedy="give ports host names of their own: api.domain",
            )
        authority = request.headers.get("Host", "")
        prefix = fronts.path_of(id, port)
        front = Front(sandbox_id=id, port=port, authority=authority, prefix=prefix)
        return await self.serve(request, front)

    async def serve(self, request: web.Request, front: Front) -> web.StreamResponse:
        """Answer a request for a port of a sandbox, by whatever way it came.

        Raises:
            UnauthorizedError, ForbiddenError: As `admit`.
            VmpoolError: As `Host.awake`, `Connections.to` and `Proxy.relay`.
        """
        visit = await self.admit(request, front.sandbox_id, front.port)
        with _let_in(request, visit):
            sandbox = await self._host.awake(front.sandbox_id, owner=visit.owner)
            proxy = Proxy(request, front, self._limits, _is_credential_of(sandbox))
            async with request.app[CONNECTIONS].to(sandbox, front.port) as traffic:
                return await proxy.relay(traffic, visit.afterwards)

    async def _carry(self, request: web.Request) -> web.StreamResponse:
        request[edge.ROUTE] = tcp.PATH
        id, port = _named(request)
        visit = await self.admit(request, id, port)
        with _let_in(request, visit):
            sandbox = await self._host.awake(id, owner=visit.owner)
            connecting = request.app[CONNECTIONS].to(sandbox, port)
            return await tcp.carry(request, connecting, self._limits)


@contextlib.contextmanager
def _let_in(request: web.Request, visit: Visit) -> Iterator[None]:
    """Take a connection for one that may stay: for good, or a stranger's for a block."""
    request[edge.OWNER] = visit.owner
    door = request.app[DOOR]
    if visit.afterwards is Afterwards.KEEP:
        door.admit(request)
        yield
    else:
        with door.visiting(request):
            yield


def _named(request: web.Request) -> tuple[str, int]:
    """Return the sandbox and the port that a path names."""
    id, port = request.match_info["id"], int(request.match_info["port"])
    if port > _MOST_PORT:
        raise web.HTTPNotFound
    return id, port


def _is_credential_of(sandbox: Sandbox) -> Callable[[str], bool]:
    """Return what tells tokens of ours from a guest program's own."""

    def is_ours(token: str) -> bool:
        return is_token(token) or token.startswith(TOKEN_PREFIX) or sandbox.admits(token)

    return is_ours
