"""Sockets: conversations with a program in a sandbox over a WebSocket.

Lines come, as they do without a socket, and input goes. The socket closes when the process has
ended. Where it runs something, the first message is the request, and closing it ends the process
group.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aiohttp import WSCloseCode, WSMsgType, web

from vmpool.api import bodies, codec, execs, outflow
from vmpool.api.confidence import confide
from vmpool.api.limits import MESSAGE_BYTES
from vmpool.api.task import stdin_of, task_of
from vmpool.errors import CallerError, ConflictError, Fault, InvalidRequestError, VmpoolError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    import msgspec

    from vmpool.api.route import Call
    from vmpool.sandbox import Sandbox
    from vmpool.timed_execution import TimedExecution


class PeerLeftError(Exception):
    """The client closed the socket."""


async def execute(call: Call, _: bodies.Nothing) -> web.StreamResponse:
    """Run something with stdin; what fails before the upgrade is an ordinary problem."""
    return await hold(call, lambda socket, sandbox: _serve(call, socket, sandbox))


async def hold(
    call: Call, serve: Callable[[web.WebSocketResponse, Sandbox], Awaitable[None]]
) -> web.StreamResponse:
    """Open a socket for what `serve` does with a sandbox; its errors are told on it.

    Raises:
        InvalidRequestError: `upgrade_required`.
    """
    socket = web.WebSocketResponse(max_msg_size=MESSAGE_BYTES, decode_text=False)
    if not socket.can_prepare(call.request):
        raise InvalidRequestError(
            "this is a WebSocket",
            code="upgrade_required",
            remedy="use the request beside it where no input is wanted",
        )
    sandbox = await call.sandbox()
    await socket.prepare(call.request)
    code = WSCloseCode.OK
    try:
        await serve(socket, sandbox)
    except PeerLeftError:
        return socket
    except outflow.StalledError:
        raise
    except VmpoolError as err:
        await send(call, socket, execs.broken_off(call, err))
        mine = err.fault is Fault.INFRASTRUCTURE
        code = WSCloseCode.INTERNAL_ERROR if mine else WSCloseCode.POLICY_VIOLATION
    await socket.close(code=code)
    return socket


async def _serve(call: Call, socket: web.WebSocketResponse, sandbox: Sandbox) -> None:
    """Take the request and run it."""
    try:
        async with asyncio.timeout(call.limits.published.body_seconds):
            kind, data = await receive(socket)
    except TimeoutError as err:
        raise CallerError("no request came over the socket", code="body_timeout") from err
    if kind is not WSMsgType.TEXT:
        raise InvalidRequestError("the first message is the request, as text")
    body = codec.decode(data, bodies.Exec)
    task = replace(task_of(body, call.limits), stdin=True)
    await confide(call, sandbox, body)
    call.host.audit(call.caller.owner, "sandbox.exec", sandbox.id, {})
    async with sandbox.execute(task) as execution:
        await converse(
            execs.relay(call, execution, lambda line: send(call, socket, line)),
            _take_input(socket, execution, stdin_of(body)),
        )


async def converse(sending: Coroutine[Any, Any, None], taking: Coroutine[Any, Any, None]) -> None:
    """Send lines and take input until the first of both ends, or the client leaves or errs."""
    tasks = asyncio.create_task(sending), asyncio.create_task(taking)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def send(call: Call, socket: web.WebSocketResponse, line: msgspec.Struct) -> None:
    """Send a line.

    Raises:
        StalledError: The client took nothing for too long.
    """
    await outflow.send(socket.send_frame(codec.encode(line), WSMsgType.TEXT), call.limits)


async def _take_input(
    socket: web.WebSocketResponse, execution: TimedExecution, first: bytes
) -> None:
    """Hand input on, `first` first, until the client closes the socket; never returns."""
    if first:
        await _write(execution, first)
    while True:
        kind, data = await receive(socket)
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


async def receive(socket: web.WebSocketResponse) -> tuple[WSMsgType, bytes]:
    """Return the next message of text or bytes.

    Raises:
        PeerLeftError: There will be none.
    """
    message = await socket.receive()
    if message.type in {WSMsgType.TEXT, WSMsgType.BINARY}:
        return message.type, message.data
    raise PeerLeftError
