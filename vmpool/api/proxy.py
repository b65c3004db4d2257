"""Proxy: requests for a port of a sandbox, handed on to what listens there, and its answers.

Bodies go both ways as they come and are kept nowhere; a WebSocket is spliced once both ends have
agreed on it. How requests and answers look on the other side is decided in `fronts`.
"""

from __future__ import annotations

import asyncio
import contextlib
from enum import Enum
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp import hdrs, web
from multidict import CIMultiDict

from vmpool.api import intake, outflow
from vmpool.api.exchange import Exchange, Head
from vmpool.api.fronts import request_headers, response_headers
from vmpool.errors import InvalidRequestError, VmpoolError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from vmpool.api.fronts import Front
    from vmpool.api.limits import Limits
    from vmpool.api.traffic import Traffic

SPLICE_BYTES: Final = 1 << 16
"""What may wait of a spliced connection's caller before it is held back."""


class Afterwards(Enum):
    """What becomes of the caller's connection when a request is answered."""

    KEEP = "keep"
    CLOSE = "close"


class Proxy:
    """One request for a port, on its way.

    Args:
        front: The way that it came.
        is_ours: Whether a credential opens something of ours; see `fronts`.
    """

    def __init__(
        self, request: web.Request, front: Front, limits: Limits, is_ours: Callable[[str], bool]
    ) -> None:
        self._request = request
        self._front = front
        self._limits = limits
        self._is_ours = is_ours
        self._target = _target(request, front)
        self._upgrades = _upgrades(request)

    async def relay(self, traffic: Traffic, afterwards: Afterwards) -> web.StreamResponse:
        """Hand the request on and send what comes back.

        Raises:
            InvalidRequestError: The request cannot be handed on, or its body is broken.
            TaskError: The server in the guest failed, or answered what must not go on.
            CallerError: The caller stalled.
            GuestError: The guest is lost.
        """
        exchange = Exchange(traffic)
        await exchange.ask(self._request.method, self._target, self._told())
        try:
            async with asyncio.TaskGroup() as group:
                uploading = group.create_task(self._upload(exchange))
                head = await exchange.head()
                response = self._response(head)
                if afterwards is Afterwards.CLOSE:
                    response.force_close()
                if head.switches:
                    await uploading
                    await _splice(self._request, response, traffic, exchange.rest, self._limits)
                else:
                    await self._download(exchange, response)
                if not uploading.done():
                    response.force_close()  # the rest of the body interests nobody
                    uploading.cancel()
        except* (VmpoolError, ConnectionError) as errors:
            raise _first(errors) from None
        return response

    def _told(self) -> list[tuple[str, str]]:
        request = self._request
        told = request_headers(
            self._front,
            request.headers.items(),
            peer=request.remote or "unknown",
            scheme=request.scheme,
            is_ours=self._is_ours,
        )
        if self._upgrades:
            return [*told, ("Connection", "Upgrade"), ("Upgrade", "websocket")]
        if request.content_length is not None:
            told.append(("Content-Length", str(request.content_length)))
        elif request.body_exists:
            told.append(("Transfer-Encoding", "chunked"))
        return [*told, ("Connection", "close")]

    async def _upload(self, exchange: Exchange) -> None:
        if self._request.body_exists:
            received = intake.read_as_sent(self._request, self._limits)
            async with contextlib.aclosing(received) as chunks:
                async for chunk in chunks:
                    if not await exchange.send(chunk):
                        return
        await exchange.finish()

    def _response(self, head: Head) -> web.StreamResponse:
        told = response_headers(self._front, self._target, head.headers)
        response = web.StreamResponse(status=head.status, headers=CIMultiDict(told))
        if self._upgrades:
            response.force_close()  # what came behind the request was not read as another
        if head.switches:
            response.headers[hdrs.CONNECTION] = "Upgrade"
            response.headers[hdrs.UPGRADE] = "websocket"
        return response

    async def _download(self, exchange: Exchange, response: web.StreamResponse) -> None:
        await outflow.send(_prepare(response, self._request), self._limits)
        async for chunk in exchange.body():
            await outflow.send(response.write(chunk), self._limits)
        await outflow.send(response.write_eof(), self._limits)


async def _prepare(response: web.StreamResponse, request: web.Request) -> None:
    await response.prepare(request)


async def _splice(
    request: web.Request,
    response: web.StreamResponse,
    traffic: Traffic,
    first: bytes,
    limits: Limits,
) -> None:
    """Carry bytes both ways until either end sends no more."""
    await outflow.send(_prepare(response, request), limits)
    incoming = aiohttp.StreamReader(request.protocol, SPLICE_BYTES, loop=asyncio.get_running_loop())
    request.protocol.set_parser(_Raw(incoming))  # type: ignore[arg-type] # as WebSocketReader

    async def down() -> None:
        data = first or await traffic.receive()
        while data:
            await outflow.send(response.write(data), limits)
            data = await traffic.receive()

    async def up() -> None:
        while data := await incoming.readany():
            if not await traffic.send(data):
                return

    await _either(down(), up())
    await outflow.send(response.write_eof(), limits)


class _Raw:
    """Takes what a connection brings as it is, in the place of aiohttp's reader of frames."""

    def __init__(self, incoming: aiohttp.StreamReader) -> None:
        self._incoming = incoming

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Take bytes; never at an end of its own accord."""
        self._incoming.feed_data(data)
        return False, b""

    def feed_eof(self) -> None:
        """Take the end."""
        self._incoming.feed_eof()


async def _either(*works: Coroutine[Any, Any, None]) -> None:
    """Do all at once until the first ends or fails."""
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _target(request: web.Request, front: Front) -> str:
    """Return what the guest is asked for, as the caller wrote it."""
    if request.method == hdrs.METH_CONNECT:
        raise InvalidRequestError("ports take no 'CONNECT'", code="method_not_allowed")
    if not request.raw_path.startswith("/"):  # an absolute one, as for a proxy
        path = request.rel_url.raw_path
        asked = f"{path}?{request.rel_url.raw_query_string}" if request.query_string else path
    else:
        asked = request.raw_path
    if front.has_paths:
        return asked
    # An id and a number: escaped or not, they have no slash.
    return "/" + asked.split("/", maxsplit=front.prefix.count("/") + 1)[-1]


def _upgrades(request: web.Request) -> bool:
    words = request.headers.get(hdrs.CONNECTION, "").lower().replace(" ", "").split(",")
    return (
        "upgrade" in words
        and request.headers.get(hdrs.UPGRADE, "").lower() == "websocket"
        and request.method == hdrs.METH_GET
    )


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return one of the errors in a group, which may hold groups."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
