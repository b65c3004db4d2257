"""Execs: running something in a sandbox and streaming what it says, line by line.

A slow reader holds the guest back: nothing is taken from the guest before the last line is on its
way. A reader that leaves ends the block around the execution, and with it the process group.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

from aiohttp import web
from msgspec import UNSET

from vmpool.api import bodies, codec, outflow, problem, views
from vmpool.api.confidence import confide
from vmpool.api.task import stdin_of, task_of
from vmpool.errors import ConflictError, GuestError, VmpoolError
from vmpool.model import Exited, Output, Raised, Result, Started, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from vmpool.api.route import Call
    from vmpool.model import Code, Command, ExecutionEvent
    from vmpool.sandbox import Sandbox
    from vmpool.timed_execution import TimedExecution

NDJSON = "application/x-ndjson"


class Transcript:
    """The events of one execution as lines of the interface."""

    def __init__(self) -> None:
        self.exited: Exited | None = None
        self._began_ns = time.perf_counter_ns()
        self._characters = {stream: codec.Characters() for stream in Stream}

    def lines(self, event: ExecutionEvent) -> Iterator[bodies.ExecLine]:
        """Yield what one event adds."""
        match event:
            case Started(pid=pid, execution_count=count):
                yield bodies.Started(pid=pid, execution_count=UNSET if count is None else count)
            case Output(stream=stream, data=data):
                for piece in self._characters[stream].feed(data):
                    yield _output(stream, piece)
            case Result():
                yield views.result(event)
            case Raised():
                yield bodies.RaisedLine(
                    name=views.printable(event.name),
                    value=views.printable(event.value),
                    traceback=views.printable(event.traceback),
                )
            case Exited():
                for stream, characters in self._characters.items():
                    for rest in characters.finish():
                        yield _output(stream, rest)
                self.exited = event
                yield views.exit_line(event, self._began_ns)


_LINES: dict[Stream, type[bodies.Stdout | bodies.Stderr | bodies.Pty]] = {
    Stream.STDOUT: bodies.Stdout,
    Stream.STDERR: bodies.Stderr,
    Stream.PTY: bodies.Pty,
}


def _output(stream: Stream, piece: str | bytes) -> bodies.ExecLine:
    kind = _LINES[stream]
    return kind(data=piece) if isinstance(piece, str) else kind(data_base64=piece)


async def execute(call: Call, body: bodies.Exec) -> web.StreamResponse:
    """Run something and stream its lines; a start that fails is an ordinary problem."""
    sandbox = await call.sandbox()
    task = task_of(body, call.limits)
    stdin = stdin_of(body)
    await confide(call, sandbox, body)
    call.host.audit(call.caller.owner, "sandbox.exec", sandbox.id, {})
    return await stream(call, _fed(sandbox, task, stdin))


async def stream(
    call: Call, running: AbstractAsyncContextManager[TimedExecution]
) -> web.StreamResponse:
    """Stream the lines of an execution for as long as its block lasts.

    Raises:
        VmpoolError: There is no line yet, so that this can be an ordinary problem.
    """
    response = web.StreamResponse(headers={"Content-Type": NDJSON})

    async def send(line: bodies.ExecLine) -> None:
        if not response.prepared:
            await response.prepare(call.request)
        await outflow.send(response.write(codec.encode(line) + b"\n"), call.limits)

    try:
        async with running as execution:
            await relay(call, execution, send)
    except VmpoolError as err:
        if not response.prepared or isinstance(err, outflow.StalledError):
            raise
        await send(broken_off(call, err))
    await response.write_eof()
    return response


@contextlib.asynccontextmanager
async def _fed(
    sandbox: Sandbox, task: Command | Code, stdin: bytes
) -> AsyncIterator[TimedExecution]:
    async with sandbox.execute(task) as execution, feeding(execution, stdin):
        yield execution


async def relay(
    call: Call, execution: TimedExecution, send: Callable[[bodies.ExecLine], Awaitable[None]]
) -> None:
    """Send every line of an execution.

    Raises:
        GuestError: `guest_lost` when the guest said nothing of an end.
    """
    transcript = Transcript()
    async for event in execution:
        for line in transcript.lines(event):
            await send(line)
    if transcript.exited is None:
        raise GuestError("the guest broke off before the execution's end", code="guest_lost")
    call.host.metrics.execution(*views.outcome(transcript.exited))


@contextlib.asynccontextmanager
async def feeding(execution: TimedExecution, stdin: bytes) -> AsyncIterator[None]:
    """Write stdin beside the block: a program may have to write before it reads."""
    if not stdin:
        yield
        return
    writing = asyncio.create_task(_feed(execution, stdin))
    try:
        yield
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def _feed(execution: TimedExecution, stdin: bytes) -> None:
    # A program that ends, or closes its input, before it has read everything did nothing wrong;
    # a guest that is lost is told by the reading side.
    with contextlib.suppress(ConflictError, GuestError):
        await execution.write_stdin(stdin)
        await execution.close_stdin()


def broken_off(call: Call, error: VmpoolError) -> bodies.ProblemLine:
    """Return the last line of an execution that we broke off, and count it."""
    call.host.metrics.execution(error.error_code, error.fault)
    return bodies.ProblemLine(
        problem=problem.describe(error, request_id=call.id, limits=call.limits)
    )
