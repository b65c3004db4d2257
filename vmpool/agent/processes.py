"""Processes: a guest's kept processes, which outlive whoever began them, seen from the host.

Everything that the guest says of them is checked before it becomes a value.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal as signals
from typing import TYPE_CHECKING, Any

from vmpool.agent import answers
from vmpool.agent.asking import patience
from vmpool.errors import ConflictError, GuestError, NotFoundError, VmpoolError
from vmpool.model import (
    Attached,
    Exited,
    Output,
    ProcessInfo,
    Started,
    Stream,
    TerminalSize,
)
from vmpool_agent import wire

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator

    from vmpool.agent.link import Link, LinkChannel
    from vmpool.model import Command

REFUSALS: dict[str, type[VmpoolError]] = {
    "no_terminal": ConflictError,
    "process_ended": ConflictError,
    "process_not_found": NotFoundError,
    "stdin_closed": ConflictError,
}
_STREAMS = {
    wire.STDOUT: Stream.STDOUT,
    wire.STDERR: Stream.STDERR,
    wire.TERMINAL: Stream.PTY,
}
_MAX_PROCESSES = 512
"""What a guest may list; ours keep 320."""
_MAX_SHOWN = 64 * 1024
"""Characters of arguments and environment of each."""
_MAX_LISTED = 8 << 20
"""The same of all together; ours keep 16 Ki of each, and its directory."""
_MAX_SIDE = 65_535
"""Characters of a terminal's side."""

ProcessEvent = Started | Attached | Output | Exited


class Attachment:
    """A kept process that is followed: an async iterator of its events, for one reader.

    The first event is `Started` or `Attached`, the last `Exited`. Who reads slowly holds the
    process back; who leaves lets it go on.
    """

    def __init__(self, channel: LinkChannel, first: Started | Attached) -> None:
        self.pid = first.pid
        self._channel = channel
        self._first: Started | Attached | None = first
        self._exited = False

    def __aiter__(self) -> AsyncIterator[ProcessEvent]:
        return self

    async def __anext__(self) -> ProcessEvent:
        """Return the next event.

        Raises:
            GuestError: The guest died, or broke the protocol; the process's fate is unknown.
        """
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._exited:
            raise StopAsyncIteration
        event = await self._channel.receive()
        if isinstance(event, wire.Data):
            return answers.output(event, _STREAMS)
        ended = _expect(event, "exited")
        self._exited = True
        return answers.exited(ended)

    async def write_stdin(self, data: bytes) -> None:
        """Send input; waits while the process does not read, and what it will not is dropped.

        Raises:
            GuestError: The link is gone.
        """
        await self._channel.send_data(wire.STDIN, data)

    async def close_stdin(self) -> None:
        """Let the process see the end of its stdin; at a terminal that is typed instead.

        Raises:
            GuestError: The link is gone.
        """
        await self._tell({"op": "close_stdin"})

    async def kill(self, signal: int = signals.SIGKILL) -> None:
        """Send a signal to the process group; nothing when it has ended.

        Raises:
            GuestError: The link is gone.
        """
        await self._tell({"op": "kill", "signal": int(signal)})

    async def resize(self, size: TerminalSize) -> None:
        """Set the size of its terminal.

        Raises:
            GuestError: The link is gone; or iterating fails with `no_terminal`.
        """
        await self._tell({"op": "resize", "rows": size.rows, "cols": size.cols})

    async def _tell(self, message: dict[str, Any]) -> None:
        if not self._channel.closed:
            await self._channel.send_message(message)


class Processes:
    """The kept processes of one guest, over its agent's link."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @contextlib.asynccontextmanager
    async def begin(
        self, what: Command, *, tag: str | None = None, terminal: TerminalSize | None = None
    ) -> AsyncGenerator[Attachment, None]:
        """Start a process and follow it from its first byte; it goes on when the block is left.

        Args:
            what: Its `timeout` holds whether or not anybody follows.
            tag: The caller's word for it, of at most 256 characters.
            terminal: Size of a terminal that it is to run at; `what.stdin` is then of no matter.

        Raises:
            InvalidRequestError: It could not be started; the code says why.
            TaskError: `guest_no_resources`.
            TooLargeError: The request is too large for the protocol.
            GuestError: The guest died, hung or broke the protocol.
        """
        request = answers.execution_request(what) | {"keep": True, "tag": tag}
        if terminal is not None:
            request["pty"] = {"rows": terminal.rows, "cols": terminal.cols}
        async with self._link.open() as channel:
            async with patience():
                await channel.send_message(request)
                first = answers.execution_event(answers.expect(await channel.receive()))
            if not isinstance(first, Started):
                raise GuestError("output before start", code="guest_protocol")
            yield Attachment(channel, first)

    async def start(
        self, what: Command, *, tag: str | None = None, terminal: TerminalSize | None = None
    ) -> int:
        """Start a process and return its id, as `begin`."""
        async with self.begin(what, tag=tag, terminal=terminal) as attachment:
            return attachment.pid

    @contextlib.asynccontextmanager
    async def attach(self, pid: int, *, backlog_bytes: int = 0) -> AsyncGenerator[Attachment, None]:
        """Follow a process; it goes on when the block is left.

        Args:
            pid: One that runs, or that ended and is remembered.
            backlog_bytes: What it wrote before now and is told first, at most.

        Raises:
            NotFoundError: `process_not_found`.
            GuestError: The guest died, hung or broke the protocol.
        """
        request = {"op": "attach", "pid": pid, "backlog_bytes": backlog_bytes}
        async with self._link.open() as channel:
            async with patience():
                await channel.send_message(request)
                answer = _expect(await channel.receive(), "attached")
            skipped = answers.integer(answer, "skipped_bytes")
            yield Attachment(channel, Attached(answers.integer(answer, "pid"), skipped))

    async def list(self) -> tuple[ProcessInfo, ...]:
        """Return those that run, and the last that ended, in the order of their starts.

        Raises:
            GuestError: The guest died, hung or broke the protocol.
        """
        listed: list[ProcessInfo] = []
        size = 0
        async with self._link.open() as channel, patience():
            await channel.send_message({"op": "processes"})
            while True:
                answer = _expect(await channel.receive(), "process", "done")
                if answer["type"] == "done":
                    return tuple(listed)
                listed.append(process := _process(answer))
                size += sum(map(len, _texts(process)))
                if len(listed) > _MAX_PROCESSES or size > _MAX_LISTED:
                    raise GuestError("too many processes", code="guest_protocol")

    async def signal(self, pid: int, signal: int) -> None:
        """Send a signal to a process's group; after SIGKILL it has ended when this returns.

        Raises:
            NotFoundError: `process_not_found`.
            ConflictError: `process_ended`.
            InvalidRequestError: There is no such signal.
            GuestError: The guest died, hung or broke the protocol.
        """
        await self._ask({"op": "signal", "pid": pid, "signal": int(signal)})

    async def resize(self, pid: int, size: TerminalSize) -> None:
        """Set the size of a process's terminal.

        Raises:
            NotFoundError: `process_not_found`.
            ConflictError: `process_ended` or `no_terminal`.
            GuestError: The guest died, hung or broke the protocol.
        """
        await self._ask({"op": "resize", "pid": pid, "rows": size.rows, "cols": size.cols})

    async def input(self, pid: int, data: AsyncIterable[bytes]) -> None:
        """Hand a process input as it comes; returns when the process has all of it.

        Waits for as long as the process does not read, and `data` does not come; who stops waiting
        takes nothing back.

        Raises:
            NotFoundError: `process_not_found`.
            ConflictError: `process_ended` or `stdin_closed`.
            GuestError: The guest died, hung or broke the protocol.
        """
        async with self._link.open() as channel:
            async with patience():
                await channel.send_message({"op": "input", "pid": pid})
            giving = asyncio.create_task(_give(channel, data))
            hearing = asyncio.create_task(_done(channel))
            try:
                # The process may end, or the guest be lost, while there is nothing to give.
                await asyncio.wait((hearing, giving), return_when=asyncio.FIRST_EXCEPTION)
                for task in (hearing, giving):
                    if task.done():
                        task.result()
            finally:
                hearing.cancel()
                giving.cancel()
                await asyncio.gather(hearing, giving, return_exceptions=True)

    async def close_stdin(self, pid: int) -> None:
        """Let a process see the end of its stdin; at a terminal that is typed instead.

        Raises:
            NotFoundError: `process_not_found`.
            ConflictError: `process_ended` or `stdin_closed`.
            GuestError: The guest died, hung or broke the protocol.
        """
        async with self._link.open() as channel, patience():
            await channel.send_message({"op": "input", "pid": pid, "close": True})
            channel.finish()
            await _done(channel)

    async def _ask(self, request: dict[str, Any]) -> None:
        async with self._link.open() as channel, patience():
            await channel.send_message(request)
            await _done(channel)


async def _give(channel: LinkChannel, data: AsyncIterable[bytes]) -> None:
    async for chunk in data:
        if not await channel.send_data(wire.STDIN, chunk):
            break
    channel.finish()


async def _done(channel: LinkChannel) -> None:
    _expect(await channel.receive(), "done")


def _expect(event: wire.Data | wire.Message | None, *kinds: str) -> dict[str, Any]:
    """Return the message that must come now, or raise what it says went wrong."""
    message = answers.expect(event)
    kind = message.get("type")
    if kind in kinds:
        return message
    if kind != "error":
        raise answers.malformed("type")
    code = message.get("code")
    if isinstance(code, str) and code in REFUSALS:
        raise answers.refusal(message, frozenset({code}), REFUSALS[code])
    return answers.done(message)


def _process(message: dict[str, Any]) -> ProcessInfo:
    """Return a process that a guest tells of; its members are of the right types already."""
    argv, env = message.get("argv"), message.get("env")
    if argv is None or env is None:
        raise answers.malformed("argv")
    size, ended, user = message.get("pty"), message.get("ended"), message.get("user")
    if user is None:
        raise answers.malformed("user")
    process = ProcessInfo(
        pid=answers.integer(message, "pid"),
        tag=message.get("tag"),
        argv=tuple(argv),
        env=dict(env),
        cwd=message.get("cwd"),
        user=user,
        terminal=None if size is None else _size(size),
        takes_input=message.get("stdin") is True,
        started_ns=answers.integer(message, "started_ns"),
        output_bytes=answers.integer(message, "output_bytes"),
        backlog_bytes=answers.integer(message, "backlog_bytes"),
        ended=None if ended is None else answers.exited(ended),
        cut=message.get("cut") is True,
    )
    texts = _texts(process)
    if len(texts) > _MAX_SHOWN or sum(map(len, texts)) > _MAX_SHOWN:
        raise answers.malformed("argv")
    return process


def _texts(process: ProcessInfo) -> list[str]:
    """Return all that a guest says of a process in words of its own."""
    named = (process.user, process.tag or "", process.cwd or "")
    return [*process.argv, *process.env, *process.env.values(), *named]


def _size(told: dict[str, Any]) -> TerminalSize:
    if not all(0 < told[name] <= _MAX_SIDE for name in ("rows", "cols")):
        raise answers.malformed("pty")
    return TerminalSize(rows=told["rows"], cols=told["cols"])
