"""App: the table of routes put behind a socket.

It wires; what a request does is said in the modules of the routes.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from vmpool import auditing
from vmpool.address import Address
from vmpool.api import edge, openapi, outflow, status, watchers
from vmpool.api.arrival import accepting
from vmpool.api.auth import Admission, Gate, check_listen
from vmpool.api.budget import BUDGET, Budget
from vmpool.api.door import DOOR, Door
from vmpool.api.e2b.mount import mount
from vmpool.api.idempotency import LEDGER, Ledger
from vmpool.api.intake import continue_later
from vmpool.api.limits import Limits
from vmpool.api.presentation import Presentation
from vmpool.api.reach import Reach
from vmpool.api.route import Call, Route
from vmpool.api.routes import ROUTES
from vmpool.api.traffic import CONNECTIONS, Connections
from vmpool.errors import HostError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from vmpool.host import Host

log = logging.getLogger(__name__)

ADMISSION: Final = web.AppKey("admission", Admission)
PRESENTATION: Final = web.AppKey("presentation", Presentation)
"""Of a server that has a certificate."""

KEEPALIVE_SECONDS: Final = 640.0
"""Longer than clients pool idle connections: one closed under a POST cannot be sent again."""

LINE_BYTES: Final = 1 << 15
"""A request's first line: the longest path in the guest, each byte escaped, and then some."""

SHUTDOWN_SECONDS: Final = 3.0
"""How long requests may still run when the server stops; executions are cut off then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundAddress:
    """Where a server listens."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The address as a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def make_app(host: Host) -> web.Application:
    """Return the application that serves `host`; whoever serves it keeps the host open."""
    limits = Limits.of(host.settings)
    admission = Admission.LOOPBACK if host.settings.insecure_no_tokens else Admission.TOKENS
    app = web.Application(
        middlewares=[edge.make_middleware(host.metrics, limits)],
        client_max_size=0,  # bodies are read, and capped, by `intake`
    )
    app.on_response_prepare.append(edge.mark)
    app[ADMISSION] = admission
    app[edge.UNDER_WAY] = edge.UnderWay(
        lambda: host.settings.deadlines.drain if host.draining else 0.0
    )
    app[LEDGER] = Ledger(host.store.answers)
    app.on_startup.append(_recall)
    app.cleanup_ctx.append(watchers.keep)
    app[BUDGET] = Budget(host.settings.api.bodies_bytes)
    app[DOOR] = Door(host.settings.api)
    interface = host.settings.api
    if interface.certificate is not None and interface.certificate_key is not None:
        app[PRESENTATION] = Presentation(
            interface.certificate, interface.certificate_key, domain=interface.domain
        )
    app[status.DOCUMENT] = openapi.document(
        ROUTES, limits, admission=admission, version=status.VERSION
    )
    gate = Gate(host, admission)
    app[CONNECTIONS] = Connections(host.settings.api)
    reach = Reach(host, limits, gate)
    mount(app, host, limits, gate, reach)
    app.middlewares.append(reach.middleware())
    reach.mount(app)
    for route in ROUTES:
        app.router.add_route(
            route.method,
            route.path,
            _endpoint(route, host, limits, gate),
            name=route.name,
            expect_handler=continue_later,
        )
    return app


async def _recall(app: web.Application) -> None:
    await app[LEDGER].recall()


def _endpoint(
    route: Route, host: Host, limits: Limits, gate: Gate
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def endpoint(request: web.Request) -> web.StreamResponse:
        caller = await gate.admit(request, route.access)
        if caller.owner:
            request.app[DOOR].admit(request)
        request[edge.OWNER] = caller.owner or "-"
        auditing.BY.set(caller.token_id)
        response = await route.run(
            Call(
                id=request[edge.REQUEST_ID],
                request=request,
                host=host,
                limits=limits,
                caller=caller,
            )
        )
        await outflow.deliver(response, request, limits)
        return response

    return endpoint


@contextlib.asynccontextmanager
async def serve(app: web.Application, listen: str | socket.socket) -> AsyncIterator[BoundAddress]:
    """Serve for the time of a block; yield the address, whose port is real where 0 was asked.

    Args:
        app: What `make_app` made.
        listen: `HOST:PORT`, or a socket that listens already; it is closed in the end.

    Raises:
        HostError: `invalid_settings`, `address_unusable`, `certificate_unusable`, or
            `tokens_required` on an address that others can reach.
    """
    listening = listen if isinstance(listen, socket.socket) else _bind(Address.parse(listen))
    with contextlib.closing(listening):
        host, port = listening.getsockname()[:2]
        check_listen(host, app[ADMISSION])
        if app[ADMISSION] is Admission.LOOPBACK:
            log.warning("serving without tokens: whoever is on this machine may use every sandbox")
        shown = app.get(PRESENTATION)
        if shown is not None:
            await shown.open()
        runner = web.AppRunner(
            app,
            handler_cancellation=True,  # a client that leaves ends what it had begun
            keepalive_timeout=KEEPALIVE_SECONDS,
            shutdown_timeout=SHUTDOWN_SECONDS,
            max_line_size=LINE_BYTES,
            auto_decompress=False,  # see `compression`
            access_log=None,  # `edge` writes a line that has ids and no queries
            logger=_ProtocolLog(log, {}),
        )
        await runner.setup()
        try:
            assert runner.server is not None
            with contextlib.closing(app[DOOR]):
                async with accepting(listening, runner.server, app[DOOR], shown):
                    try:
                        yield BoundAddress(host=host, port=port)
                    finally:  # still accepting: others are answered meanwhile
                        await app[edge.UNDER_WAY].over()
        finally:
            await runner.cleanup()


class _ProtocolLog(logging.LoggerAdapter[logging.Logger]):
    """Where aiohttp reports what is no HTTP: without the bytes, which may hold a token."""

    def exception(self, msg: object, *args: object, exc_info: Any = True, **_: object) -> None:
        self.debug("%s: %s", str(msg) % args, type(exc_info).__name__)


def _bind(address: Address) -> socket.socket:
    try:
        family, kind, protocol, _, resolved = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as err:
        raise _unusable(address, err) from err
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(resolved)
    except OSError as err:
        listening.close()
        raise _unusable(address, err) from err
    return listening


def _unusable(address: Address, err: OSError) -> HostError:
    return HostError(
        f"cannot listen on {address.host!r}, port {address.port}: {err.strerror or err}",
        code="address_unusable",
        remedy="give another HOST:PORT, or stop what listens there",
    )
