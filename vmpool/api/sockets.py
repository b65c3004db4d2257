"""Sockets: running something in a sandbox over a WebSocket, where stdin is wanted.

The first message is the request; then lines come, as they do without a socket, and input goes.
The socket closes when the process has ended; closing it ends the process group.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from aiohttp import WSCloseCode, WSMsgType, web

from vmpool.api import bodies, codec, execs, outflow
from vmpool.api.limits import MESSAGE_BYTES
from vmpool.api.task import stdin_of, task_of
from vmpool.errors import CallerError, ConflictError, Fault, InvalidRequestError, VmpoolError

if TYPE_CHECKING:
    from vmpool.api.route import Call
    from vmpool.sandbox import Sandbox
    from vmpool.timed_execution import TimedExecution


class _PeerLeftError(Exception):
    """The client closed the socket."""


async def execute(call: Call, _: bodies.Nothing) -> web.StreamResponse:
    """Run something with stdin; what fails before the upgrade is an ordinary problem."""
    socket = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES, decode_text=False)
    if not socket.can_prepare(call.request):
        raise InvalidRequestError(
            "this is a WebSocket",
            code="upgrade_required",
            remedy="use POST where no stdin is wanted",
        )
    sandbox = await call.sandbox()
    await socket.prepare(call.request)
    code = WSCloseCode.OK
    try:
        await _serve(call, socket, sandbox)
    except _PeerLeftError:
        return socket
    except outflow.StalledError:
        raise
    except VmpoolError as err:
        await _send(call, socket, execs.broken_off(call, err))
        mine = err.fault is Fault.INFRASTRUCTURE
        code = WSCloseCode.INTERNAL_ERROR if mine else WSCloseCode.POLICY_VIOLATION
    await socket.close(code=code)
    return socket


async def _serve(call: Call, socket: web.WebSocketResponse, sandbox: Sandbox) -> None:
    """Take the request and run it."""
    try:
        async with asyncio.timeout(call.limits.published.body_seconds):
            kind, data = await _receive(socket)
    except TimeoutError as err:
        raise CallerError("no request came over the socket", code="body_timeout") from err
    if kind is not WSMsgType.TEXT:
        raise InvalidRequestError("the first message is the request, as text")
    body = codec.decode(data, bodies.Exec)
    task = replace(task_of(body, call.limits), stdin=True)
    call.host.audit(call.caller.owner, "sandbox.exec", sandbox.id, {})
    async with sandbox.execute(task) as execution:
        await _converse(call, socket, execution, stdin_of(body))


async def _converse(
    call: Call, socket: web.WebSocketResponse, execution: TimedExecution, stdin: bytes
) -> None:
    """Send lines and take input until the execution ends, or the client leaves or errs."""

    async def send(line: bodies.ExecLine) -> None:
        await _send(call, socket, line)

    sending = asyncio.create_task(execs.relay(call, execution, send))
    taking = asyncio.create_task(_take_input(socket, execution, stdin))
    try:
        await asyncio.wait((sending, taking), return_when=asyncio.FIRST_COMPLETED)
        (sending if sending.done() else taking).result()
    finally:
        sending.cancel()
        taking.cancel()
        await asyncio.gather(sending, taking, return_exceptions=True)


async def _send(call: Call, socket: web.WebSocketResponse, line: bodies.ExecLine) -> None:
    await outflow.send(socket.send_frame(codec.encode(line), WSMsgType.TEXT), call.limits)


async def _take_input(
    socket: web.WebSocketResponse, execution: TimedExecution, first: bytes
) -> None:
    """Hand input on, `first` first, until the client closes the socket; never returns."""
    if first:
        await _write(execution, first)
    while True:
        kind, data = await _receive(socket)
        if kind is WSMsgType.BINARY:
            await _write(execution, data)
        else:
            await _obey(codec.decode(data, bodies.Input), execution)


async def _write(execution: TimedExecution, data: bytes) -> None:
    # A program may end, or close its input, while input is on its way: what it said and how it
    # ended is told all the same.
    with contextlib.suppress(ConflictError):
        await execution.write_stdin(data)


async def _obey(message: bodies.Input, execution: TimedExecution) -> None:
    match message:
        case bodies.Input(stdin=str(text), stdin_base64=None, eof=None, signal=None):
            await _write(execution, text.encode())
        case bodies.Input(stdin=None, stdin_base64=bytes(data), eof=None, signal=None):
            await _write(execution, data)
        case bodies.Input(stdin=None, stdin_base64=None, eof=True, signal=None):
            await execution.close_stdin()
        case bodies.Input(stdin=None, stdin_base64=None, eof=None, signal=int(number)):
            await execution.kill(number)
        case _:
            raise InvalidRequestError(
                "give exactly one of 'stdin', 'stdin_base64', 'eof' and 'signal'"
            )


async def _receive(socket: web.WebSocketResponse) -> tuple[WSMsgType, bytes]:
    """Return the next message of text or bytes.

    Raises:
        _PeerLeftError: There will be none.
    """
    message = await socket.receive()
    if message.type in {WSMsgType.TEXT, WSMsgType.BINARY}:
        return message.type, message.data
    raise _PeerLeftError
