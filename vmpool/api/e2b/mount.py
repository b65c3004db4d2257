"""Mount: the whole interface of E2B's clients put into a server's application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from vmpool import auditing
from vmpool.api import edge, outflow
from vmpool.api.door import DOOR
from vmpool.api.e2b import problem
from vmpool.api.e2b.control.metrics import GAUGES
from vmpool.api.e2b.control.operations import OPERATIONS
from vmpool.api.e2b.router import Router, tell
from vmpool.api.e2b.templates import workshop
from vmpool.api.e2b.templates.operations import OPERATIONS as TEMPLATE_OPERATIONS
from vmpool.api.e2b.visit import Shape
from vmpool.api.intake import continue_later
from vmpool.api.route import Call
from vmpool.errors import VmpoolError
from vmpool.gauges import Gauges

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmpool.api.auth import Access, Caller, Gate
    from vmpool.api.e2b.operation import Operation
    from vmpool.api.limits import Limits
    from vmpool.api.reach import Reach
    from vmpool.host import Host

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

KEY_HEADER: Final = "X-API-KEY"


def mount(app: web.Application, host: Host, limits: Limits, gate: Gate, reach: Reach) -> None:
    """Serve E2B's clients beside the native interface, before `reach` sees what is for a port."""
    app[GAUGES] = Gauges()
    app.middlewares.append(Router(host, limits, reach).middleware())
    app.middlewares.append(_unmatched)
    workshop.put_in(app, host)
    for operation in (*OPERATIONS, *TEMPLATE_OPERATIONS):
        app.router.add_route(
            operation.method,
            operation.path,
            _endpoint(operation, host, limits, gate),
            expect_handler=continue_later,
        )


def _endpoint(operation: Operation, host: Host, limits: Limits, gate: Gate) -> Handler:
    async def endpoint(request: web.Request) -> web.StreamResponse:
        try:
            caller = await _admit(request, operation.access, gate)
            call = Call(
                id=request[edge.REQUEST_ID],
                request=request,
                host=host,
                limits=limits,
                caller=caller,
            )
            response = await operation.run(call)
            await outflow.deliver(response, request, limits)
        except VmpoolError as err:
            if request.get(edge.BEGUN):
                raise
            return tell(request, err, Shape.CODE)
        return response

    return endpoint


async def _admit(request: web.Request, access: Access, gate: Gate) -> Caller:
    """Return who is calling.

    Raises:
        UnauthorizedError: `token_missing` or `token_invalid`.
        ForbiddenError: As `Gate.admit`.
    """
    key = request.headers.get(KEY_HEADER)
    caller = await gate.admit(request, access, token=key)
    if caller.owner:
        request.app[DOOR].admit(request)
    request[edge.OWNER] = caller.owner or "-"
    auditing.BY.set(caller.token_id)
    return caller


@web.middleware
async def _unmatched(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell E2B's clients of what is not here as they read it."""
    try:
        return await handler(request)
    except (web.HTTPNotFound, web.HTTPMethodNotAllowed) as err:
        if KEY_HEADER not in request.headers:
            raise
        return problem.coded(err.status, "there is nothing at this path")
