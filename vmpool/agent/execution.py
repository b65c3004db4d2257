"""Execution: one program, source or cell that runs in a guest, seen from the host."""

from __future__ import annotations

import signal as signals
from typing import TYPE_CHECKING

from vmpool.agent import answers
from vmpool.errors import ConflictError
from vmpool.model import ExecutionEvent, Exited, Started, Stream
from vmpool_agent import wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.agent.link import LinkChannel

_STREAMS = {wire.STDOUT: Stream.STDOUT, wire.STDERR: Stream.STDERR}


class Execution:
    """One running program or source: an async iterator of its events, for one reader.

    The first event is `Started`, the last `Exited`. Who reads slowly holds the guest back.
    """

    def __init__(self, channel: LinkChannel, started: Started, *, stdin: bool) -> None:
        self._channel = channel
        self._started: Started | None = started
        self._exited = False
        self._stdin = stdin
        self.pid = started.pid

    def __aiter__(self) -> AsyncIterator[ExecutionEvent]:
        return self

    async def __anext__(self) -> ExecutionEvent:
        """Return the next event.

        Raises:
            GuestError: The guest died, or broke the protocol; the process's fate is unknown.
        """
        if self._started is not None:
            started, self._started = self._started, None
            return started
        if self._exited:
            raise StopAsyncIteration
        event = await self._channel.receive()
        if isinstance(event, wire.Data):
            return answers.output(event, _STREAMS)
        parsed = answers.execution_event(answers.expect(event))
        self._exited = isinstance(parsed, Exited)
        return parsed

    async def write_stdin(self, data: bytes) -> None:
        """Send bytes to stdin; waits while the program does not read.

        Raises:
            ConflictError: Stdin is no pipe, is closed, or the program has ended.
            GuestError: The link is gone.
        """
        if not self._stdin or not await self._channel.send_data(wire.STDIN, data):
            raise ConflictError("stdin is closed", code="stdin_closed")

    async def close_stdin(self) -> None:
        """Let the program see the end of its stdin. *Idempotent.*"""
        self._stdin = False
        self._channel.finish()

    async def kill(self, signal: int = signals.SIGKILL) -> None:
        """Send a signal to the process group; nothing when it has ended.

        Raises:
            GuestError: The link is gone.
        """
        if not self._channel.closed:
            await self._channel.send_message({"op": "kill", "signal": int(signal)})
