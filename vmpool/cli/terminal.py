"""Terminal: this terminal, given to a program at a terminal in a guest, over a WebSocket.

Keys go to the program as they are typed, Ctrl-C among them; but for Ctrl-], which detaches.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from enum import Enum, auto
from typing import TYPE_CHECKING

import aiohttp

from vmpool.cli import conversation
from vmpool.cli.remote import decode_event

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from vmpool.cli.transcript import Transcript
    from vmpool.client.endpoint import Endpoint

DETACH = b"\x1d"
"""Ctrl-], as telnet has it."""


class Ending(Enum):
    """How a program was left."""

    ENDED = auto()
    DETACHED = auto()


def size() -> dict[str, int]:
    """Return this terminal's size, as the interface has it.

    It is the terminal that is asked: `COLUMNS` and `LINES` do not follow when it is resized.
    """
    try:
        cols, rows = os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        cols, rows = 80, 24
    return {"rows": max(rows, 1), "cols": max(cols, 1)}


def hold(endpoint: Endpoint, path: str, transcript: Transcript) -> Ending:
    """Give this terminal to a program until it ends or is detached from.

    Raises:
        VmpoolError: The server broke it off, or `server_lost`.
    """
    with _raw():
        return asyncio.run(_hold(endpoint, path, transcript))


async def _hold(endpoint: Endpoint, path: str, transcript: Transcript) -> Ending:
    async with conversation.opened(endpoint, path) as socket, _resized(socket):
        typing = asyncio.create_task(_type(socket))
        reading = asyncio.create_task(_read(socket, transcript))
        try:
            await asyncio.wait((typing, reading), return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
                return Ending.ENDED
            typing.result()
            return Ending.DETACHED
        finally:
            typing.cancel()
            reading.cancel()
            await asyncio.gather(typing, reading, return_exceptions=True)


async def _read(socket: aiohttp.ClientWebSocketResponse, transcript: Transcript) -> None:
    async for message in socket:
        if message.type is aiohttp.WSMsgType.TEXT:
            transcript.take(decode_event(message.data))


async def _type(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Send what is typed; return when that is to detach, or this terminal is gone."""
    async for piece in conversation.stdin():
        keys, detach, _ = piece.partition(DETACH)
        if keys:
            await socket.send_bytes(keys)
        if detach:
            return


@contextlib.asynccontextmanager
async def _resized(socket: aiohttp.ClientWebSocketResponse) -> AsyncIterator[None]:
    """Tell the program this terminal's size, now and whenever it changes."""
    changed = asyncio.Event()
    changed.set()

    async def tell() -> None:
        while True:
            await changed.wait()
            changed.clear()
            await socket.send_json({"resize": size()})

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, changed.set)
    telling = asyncio.create_task(tell())
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Have this terminal hand over each key as it is typed, and as it was afterwards."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
