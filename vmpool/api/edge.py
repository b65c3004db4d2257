"""Edge: what happens to every request, whatever it asks for.

An id, one line in the log, one count in the metrics, and an answer for each error. Guest output,
bodies, queries and tokens never reach the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from aiohttp import web

from vmpool.api import problem
from vmpool.descriptors import spent
from vmpool.errors import (
    CallerError,
    Fault,
    InvalidRequestError,
    NotFoundError,
    VmpoolError,
)
from vmpool.model import new_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from vmpool.api.limits import Limits
    from vmpool.metrics import Metrics

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
    Middleware = Callable[[web.Request, Handler], Awaitable[web.StreamResponse]]

log = logging.getLogger(__name__)

REQUEST_ID: Final = web.RequestKey("request_id", str)
OWNER: Final = web.RequestKey("owner", str)
CODE: Final = web.RequestKey("code", str)
BEGUN: Final = web.RequestKey("begun", bool)
ROUTE: Final = web.RequestKey("route", str)
"""What a request is counted as, where the router does not know."""

CLIENT_LEFT: Final = 499
"""What the log and the metrics show for a request whose client went away; nobody receives it."""

HEADERS: Final = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class UnderWay:
    """The requests that are being answered.

    Args:
        patience: Tells how many seconds they are waited for in the end.
    """

    def __init__(self, patience: Callable[[], float]) -> None:
        self._patience = patience
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def over(self) -> None:
        """Return once there is none, or patience is."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._patience()):
                await self._none.wait()


UNDER_WAY: Final = web.AppKey("under_way", UnderWay)


def make_middleware(
    metrics: Metrics, limits: Limits
) -> Callable[..., Awaitable[web.StreamResponse]]:
    """Return the outermost middleware of a server."""

    @web.middleware
    async def edge(request: web.Request, handler: Handler) -> web.StreamResponse:
        began_ns = time.perf_counter_ns()
        request[REQUEST_ID] = new_id("req")
        status = CLIENT_LEFT
        try:
            with request.app[UNDER_WAY]:
                response = await _answer(request, handler, limits)
            status = response.status
            return response
        finally:
            route = _route_of(request)
            took_ns = time.perf_counter_ns() - began_ns
            metrics.request(route, request.get(CODE, str(status)), took_ns)
            log.info(
                "request=%s owner=%s %s %s %d %s %.1f ms",
                request[REQUEST_ID],
                request.get(OWNER, "-"),
                request.method,
                route,
                status,
                request.get(CODE, "-"),
                took_ns / 1e6,
            )

    return edge


async def mark(request: web.Request, response: web.StreamResponse) -> None:
    """Put what every response has into its headers; called as the first byte goes out."""
    request[BEGUN] = True
    response.headers["X-Request-Id"] = request[REQUEST_ID]
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


async def _answer(request: web.Request, handler: Handler, limits: Limits) -> web.StreamResponse:
    headers = {}
    try:
        return await handler(request)
    except VmpoolError as err:
        error = err
    except web.HTTPMethodNotAllowed as err:
        headers["Allow"] = err.headers["Allow"]
        error = _translate(err)
    except web.HTTPException as err:
        error = _translate(err)
    except Exception as err:  # noqa: BLE001 - the request's top: whatever failed is told or logged
        if isinstance(err, ConnectionError) and _has_left(request):
            return web.Response(status=CLIENT_LEFT)
        error = _unforeseen(request, err)
    request[CODE] = error.error_code
    if error.fault is Fault.INFRASTRUCTURE and type(error) is not VmpoolError:
        log.warning("request=%s %s: %s", request[REQUEST_ID], error.error_code, error)
    if request.get(BEGUN) and request.transport is not None:
        # Half an answer is out. Only an aborted connection tells the client that it is not whole.
        request.transport.abort()
    response = problem.respond(
        problem.describe(error, request_id=request[REQUEST_ID], limits=limits)
    )
    response.headers.update(headers)
    return response


def _unforeseen(request: web.Request, err: Exception) -> VmpoolError:
    """Return our error for one of somebody else's, which the log has."""
    if isinstance(err, OSError) and (known := spent(err)) is not None:
        return known
    log.error("request=%s failed in a way nobody foresaw", request[REQUEST_ID], exc_info=err)
    return VmpoolError(
        "something failed that should not have",
        remedy="tell whoever runs this server the request id; the log has the rest",
    )


def _has_left(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def _translate(error: web.HTTPException) -> VmpoolError:
    """Return our error for one that the router raised."""
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            return InvalidRequestError(
                f"this path takes {allowed}, not {error.method!r}", code="method_not_allowed"
            )
        case web.HTTPNotFound():
            return NotFoundError(
                "there is nothing at this path",
                code="route_not_found",
                remedy="GET /openapi.json lists all paths",
            )
        case _:
            phrase = HTTPStatus(error.status).phrase.lower()
            return CallerError(f"the request was refused: {phrase}")


def _route_of(request: web.Request) -> str:
    """Return the path's pattern: an id in a metric's label would make a series of its own."""
    resource = request.match_info.route.resource
    return request.get(ROUTE) or ("unmatched" if resource is None else resource.canonical)
