"""Execution: one program that runs in a sandbox, followed as it runs.

Iterating is streaming: who takes the next event late holds the program back.
"""

from __future__ import annotations

import contextlib
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from vmpool.client.events import Exited, read_event
from vmpool.client.result import Gathering, Result
from vmpool.errors import InfrastructureError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    import aiohttp

    from vmpool.client.connection import Connection
    from vmpool.client.events import Event

PIECE_BYTES = 1 << 18
"""Input is sent in messages of this size; a server takes up to 1 MiB."""


class AsyncExecution:
    """A running program; iterate over it for its events. Made by a sandbox's `exec`.

    Iterate once; what was taken is still part of `result`.
    """

    def __init__(self, lines: AsyncIterator[bytes | str]) -> None:
        self._lines = lines
        self._gathering = Gathering()
        self._events = self._read()

    def __aiter__(self) -> AsyncIterator[Event]:
        """Yield what happens, up to and with the end.

        Raises:
            VmpoolError: The server broke it off: the sandbox ended, or its guest was lost.
            InfrastructureError: `server_lost`; whether it still runs is unknown.
        """
        return self._events

    async def result(self) -> Result:
        """Let it run to its end and return what came of it, what was iterated over included.

        Raises:
            VmpoolError: As iterating.
        """
        async for _ in self._events:
            pass
        assert self._gathering.exited is not None
        return self._gathering.result(self._gathering.exited)

    async def aclose(self) -> None:
        """Let go of the stream's iterator."""
        await self._events.aclose()

    async def _read(self) -> AsyncGenerator[Event]:
        async for line in self._lines:
            event = read_event(line)
            if event is None:
                continue
            self._gathering.add(event)
            yield event
            if isinstance(event, Exited):
                await self._take_end()
                return
        raise InfrastructureError(
            "lost the server: its stream broke off before the program's end",
            code="server_lost",
            remedy="whether the program still runs is unknown; look at the server's log",
        )

    async def _take_end(self) -> None:
        """Take the stream's end, so that its connection can serve the next request."""
        with contextlib.suppress(InfrastructureError):  # all that matters was told
            async for _ in self._lines:
                pass


class AsyncInteraction:
    """A running program that takes input while it runs. Made by a sandbox's `interact`.

    Read its events beside writing: a program that nobody reads stops, and then reads nothing.

    Attributes:
        execution: Its events and its result; iterating over this object is iterating over that.
    """

    def __init__(
        self,
        connection: Connection,
        socket: aiohttp.ClientWebSocketResponse,
        execution: AsyncExecution,
    ) -> None:
        self.execution = execution
        self._connection = connection
        self._socket = socket

    def __aiter__(self) -> AsyncIterator[Event]:
        """Yield what happens, as `AsyncExecution`."""
        return aiter(self.execution)

    async def result(self) -> Result:
        """Let it run to its end and return what came of it, as `AsyncExecution`."""
        return await self.execution.result()

    async def write(self, data: bytes | str) -> None:
        """Send input; what the program does not take any more is dropped.

        Raises:
            InfrastructureError: `server_lost`.
        """
        view = memoryview(data.encode() if isinstance(data, str) else data)
        for at in range(0, len(view), PIECE_BYTES):
            await self._connection.send(self._socket, bytes(view[at : at + PIECE_BYTES]))

    async def close_stdin(self) -> None:
        """Tell the program that there is no more input.

        Raises:
            InfrastructureError: `server_lost`.
        """
        await self._tell(eof=True)

    async def signal(self, number: int) -> None:
        """Send a signal to the program's process group.

        Raises:
            InfrastructureError: `server_lost`.
        """
        await self._tell(signal=number)

    async def _tell(self, **message: object) -> None:
        await self._connection.send(self._socket, msgspec.json.encode(message).decode())


async def drain(lines: AsyncGenerator[bytes]) -> Result:
    """Return the result of a stream of events.

    Raises:
        VmpoolError: As iterating over an execution.
    """
    async with aclosing(lines), aclosing(AsyncExecution(lines)) as execution:
        return await execution.result()
