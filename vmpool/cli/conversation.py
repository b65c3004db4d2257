"""Conversation: a program in a guest whose stdin is ours, over a WebSocket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
import sys
import threading
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import aiohttp

from vmpool.cli.remote import LINE_LIMIT_BYTES, decode_event
from vmpool.errors import InfrastructureError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from vmpool.cli.transcript import Transcript
    from vmpool.client.endpoint import Endpoint

CHUNK_BYTES = 1 << 15

HEARTBEAT = 30.0
"""Seconds between pings, so that a server that is gone without a word is noticed."""


def hold(
    endpoint: Endpoint, path: str, body: dict[str, Any] | None, transcript: Transcript
) -> None:
    """Follow one program to its end, passing stdin on as it comes.

    Args:
        endpoint: The server.
        path: Where its WebSocket is.
        body: What is to run; `None` when it runs already.
        transcript: Prints what is said.

    Raises:
        VmpoolError: The server broke it off, or `server_lost`.
    """
    asyncio.run(_hold(endpoint, path, body, transcript))


async def _hold(
    endpoint: Endpoint, path: str, body: dict[str, Any] | None, transcript: Transcript
) -> None:
    async with opened(endpoint, path) as socket:
        if body is not None:
            await socket.send_json(body)
        await _converse(socket, transcript)


@contextlib.asynccontextmanager
async def opened(endpoint: Endpoint, path: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """Open a WebSocket for the time of a block.

    Raises:
        InfrastructureError: `server_lost`.
    """
    headers = {"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else {}
    async with aiohttp.ClientSession(headers=headers) as session:
        try:
            async with session.ws_connect(
                f"{endpoint.url}{path}", max_msg_size=LINE_LIMIT_BYTES, heartbeat=HEARTBEAT
            ) as socket:
                yield socket
        except (aiohttp.ClientError, ConnectionError) as err:
            raise InfrastructureError(
                f"lost the server at {endpoint.url}: {err}", code="server_lost"
            ) from err


async def _converse(socket: aiohttp.ClientWebSocketResponse, transcript: Transcript) -> None:
    feeding = asyncio.create_task(_feed(socket))
    try:
        with _interrupts_passed_on(socket):
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT:
                    transcript.take(decode_event(message.data))
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def _feed(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Send stdin as it comes, and its end."""
    async for piece in stdin():
        await socket.send_json({"stdin_base64": base64.b64encode(piece).decode()})
    await socket.send_json({"eof": True})


async def stdin() -> AsyncIterator[bytes]:
    """Yield our stdin as it comes."""
    pieces: asyncio.Queue[bytes] = asyncio.Queue(maxsize=4)
    loop = asyncio.get_running_loop()
    # A thread that nobody waits for: a read of a terminal cannot be broken off.
    threading.Thread(target=_read_stdin, args=(loop, pieces), name="stdin", daemon=True).start()
    while piece := await pieces.get():
        yield piece


def _read_stdin(loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[bytes]) -> None:
    """Put stdin into a queue piece by piece, an empty one at its end; wait while it is full."""
    # The loop may be over while we were reading: then nobody wants what came.
    with contextlib.suppress(RuntimeError, CancelledError):
        piece = b"more"
        while piece:
            piece = os.read(sys.stdin.fileno(), CHUNK_BYTES)
            asyncio.run_coroutine_threadsafe(pieces.put(piece), loop).result()


@contextlib.contextmanager
def _interrupts_passed_on(socket: aiohttp.ClientWebSocketResponse) -> Iterator[None]:
    """Pass the first Ctrl-C on to the program; the second one is ours again."""
    loop = asyncio.get_running_loop()
    sending: list[asyncio.Task[None]] = []

    def pass_on() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sending.append(loop.create_task(socket.send_json({"signal": int(signal.SIGINT)})))

    loop.add_signal_handler(signal.SIGINT, pass_on)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        for task in sending:
            task.cancel()
