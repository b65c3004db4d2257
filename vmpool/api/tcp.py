"""TCP: a connection to a port of a sandbox, carried over a WebSocket, whatever is spoken there.

A binary message is bytes of the stream, wherever it was cut. A text message, `{"eof": true}`, is
the end of what its sender sends; the other direction goes on. The socket closes with 1000 when both
have ended, and with another code when the connection was broken off.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from aiohttp import WSCloseCode, WSMsgType, web
from msgspec import Struct

from vmpool.api import codec, outflow, sockets
from vmpool.api.limits import MESSAGE_BYTES
from vmpool.errors import Fault, InvalidRequestError, VmpoolError

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from vmpool.api.limits import Limits
    from vmpool.api.traffic import Traffic

PATH = "/v1/sandboxes/{id}/tcp/{port}"


class End(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Its sender sends no more."""

    eof: Literal[True]


_END = b'{"eof":true}'


async def carry(
    request: web.Request, connecting: AbstractAsyncContextManager[Traffic], limits: Limits
) -> web.StreamResponse:
    """Connect, open the socket and carry bytes until both sides have ended, or the caller leaves.

    Raises:
        InvalidRequestError: `upgrade_required`.
        VmpoolError: As `connecting`, before the socket is open; what fails later closes it.
    """
    socket = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES, decode_text=False, compress=False)
    code, reason = WSCloseCode.OK, ""
    try:
        async with connecting as traffic:
            # Not before: who was refused a socket asks without one to be told why.
            _require_socket(socket, request)
            await socket.prepare(request)
            await _converse(socket, traffic, limits)
    except sockets.PeerLeftError:
        return socket
    except VmpoolError as err:
        if not socket.prepared or isinstance(err, outflow.StalledError):
            raise
        mine = err.fault is Fault.INFRASTRUCTURE
        code = WSCloseCode.INTERNAL_ERROR if mine else WSCloseCode.POLICY_VIOLATION
        reason = err.error_code
    await socket.close(code=code, message=reason.encode())
    return socket


def _require_socket(socket: web.WebSocketResponse, request: web.Request) -> None:
    if not socket.can_prepare(request):
        raise InvalidRequestError(
            "this is a WebSocket",
            code="upgrade_required",
            remedy="for HTTP ask for .../ports/PORT/, for anything else: vmpool port-forward",
        )


async def _converse(socket: web.WebSocketResponse, traffic: Traffic, limits: Limits) -> None:
    """Carry both ways until both have ended; raises what ended the first that failed."""
    try:
        async with asyncio.TaskGroup() as group:
            ended = asyncio.Event()
            taking = group.create_task(_up(socket, traffic, ended))
            await _down(socket, traffic, limits)
            await ended.wait()
            taking.cancel()
    except* (VmpoolError, sockets.PeerLeftError) as errors:
        raise errors.exceptions[0] from None


async def _down(socket: web.WebSocketResponse, traffic: Traffic, limits: Limits) -> None:
    while data := await traffic.receive():
        await outflow.send(socket.send_frame(data, WSMsgType.BINARY), limits)
    await outflow.send(socket.send_frame(_END, WSMsgType.TEXT), limits)


async def _up(socket: web.WebSocketResponse, traffic: Traffic, ended: asyncio.Event) -> None:
    """Hand on what comes until the caller leaves; its end is noted, and nothing is due after it."""
    while True:
        kind, data = await sockets.receive(socket)
        if kind is WSMsgType.TEXT:
            codec.decode(data, End)
            traffic.finish()
            ended.set()
        elif not ended.is_set():
            await traffic.send(data)
        else:
            raise InvalidRequestError("bytes behind the end")
