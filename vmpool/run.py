"""Run: one execution in a virtual machine of its own, with files in and out.

What `POST /v1/run` means, given a sandbox that is killed afterwards by whoever gave it. Output and
files are collected up to the caller's limits; what is over is said, never silently dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vmpool.egress import UNCONNECTED, NetworkPolicy
from vmpool.errors import ConflictError, GuestError, GuestFileError
from vmpool.model import (
    Code,
    Command,
    Exited,
    IdentityReceipt,
    Output,
    Raised,
    Result,
    Started,
    Stream,
)
from vmpool.timed_execution import GRACE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.agent import Agent
    from vmpool.sandbox import Sandbox
    from vmpool.timed_execution import TimedExecution

TRANSFER_TIMEOUT = 300.0
"""Seconds for all files that go in, and as many for all that come out."""

RESULT_OVERHEAD_BYTES = 256
"""What one result counts at least: thousands of empty ones are not free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What to run, and what goes in and out with it.

    Attributes:
        stdin: Written to the program and then closed; nothing is written when empty.
        files: Guest path to content, written before the start as the account that runs.
        collect: Guest paths to read after the end.
        output_limit_bytes: For stdout and stderr together; what is over is cut and said.
        result_limit_bytes: For all results together; what is over is cut and said.
        file_limit_bytes: For all collected files together.
        wait: Seconds to wait for a clone when none is ready.
        network: What it may reach.
    """

    template: str
    what: Command | Code
    stdin: bytes = b""
    files: dict[str, bytes] = field(default_factory=dict)
    collect: tuple[str, ...] = ()
    output_limit_bytes: int
    result_limit_bytes: int
    file_limit_bytes: int
    wait: float
    network: NetworkPolicy = UNCONNECTED


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTimings:
    """How long each phase of a run took, in nanoseconds.

    Attributes:
        acquire_ns: Until a clone was in hand; it may wake still.
        upload_ns: Writing the files that go in.
        first_output_ns: From the start until the first output, `None` when there was none.
        execute_ns: From the start until the end.
        collect_ns: Reading the files that go out.
    """

    acquire_ns: int
    upload_ns: int
    first_output_ns: int | None
    execute_ns: int
    collect_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOutcome:
    """Everything that came out of one run.

    Attributes:
        truncated: Output or results were over their limit and are cut.
        missing: Files asked for that could not be read, and why.
    """

    id: str
    stdout: bytes
    stderr: bytes
    truncated: bool
    results: tuple[Result, ...]
    error: Raised | None
    exited: Exited
    files: dict[str, bytes]
    missing: dict[str, GuestFileError]
    timings: RunTimings
    receipt: IdentityReceipt


class _Transcript:
    """What an execution has said so far, within limits."""

    def __init__(self, request: RunRequest) -> None:
        self.output = {Stream.STDOUT: bytearray(), Stream.STDERR: bytearray()}
        self.results: list[Result] = []
        self.error: Raised | None = None
        self.exited: Exited | None = None
        self.truncated = False
        self.first_output_ns: int | None = None
        self._output_left = request.output_limit_bytes
        self._results_left = request.result_limit_bytes
        self._started_ns = time.perf_counter_ns()

    async def follow(self, execution: TimedExecution) -> None:
        """Take every event until the end; what is over the limits is read and dropped."""
        async for event in execution:
            match event:
                case Started():
                    pass
                case Output(stream=stream, data=data):
                    self._take_output(stream, data)
                case Result(mime=mime):
                    self._take_result(event, sum(map(_size, mime.items())))
                case Raised():
                    self.error = event
                case Exited():
                    self.exited = event

    def _take_output(self, stream: Stream, data: bytes) -> None:
        if self.first_output_ns is None:
            self.first_output_ns = time.perf_counter_ns() - self._started_ns
        kept = data[: self._output_left]
        self._output_left -= len(kept)
        self.truncated |= len(kept) < len(data)
        self.output[stream] += kept

    def _take_result(self, result: Result, size: int) -> None:
        size += RESULT_OVERHEAD_BYTES
        if size > self._results_left:
            self.truncated = True
            return
        self._results_left -= size
        self.results.append(result)


async def run(sandbox: Sandbox, request: RunRequest) -> RunOutcome:
    """Write the files, run, read the files asked for. *Not idempotent.*

    Raises:
        GuestFileError: A file that goes in could not be written.
        InvalidRequestError: The guest refused the start: no such program, account or directory.
        NotFoundError: `sandbox_ended`: somebody ended the sandbox meanwhile.
        GuestError: The guest broke off, or `guest_unresponsive`: it did not end the execution when
            its time was up, or does not move files. The execution's end is unknown.
        InfrastructureError: The guest died, and of what.
    """
    begun = time.perf_counter_ns()
    async with _limit(TRANSFER_TIMEOUT, "take the files"):
        await _upload(sandbox, request)
    uploaded = time.perf_counter_ns()
    async with _limit(_longest(request.what), "end the execution"):
        transcript = await _execute(sandbox, request)
    if transcript.exited is None:
        raise GuestError("the guest broke off before the execution's end", code="guest_lost")
    executed = time.perf_counter_ns()
    async with _limit(TRANSFER_TIMEOUT, "give the files"):
        files, missing = await _collect(sandbox, request)
    return RunOutcome(
        id=sandbox.id,
        stdout=bytes(transcript.output[Stream.STDOUT]),
        stderr=bytes(transcript.output[Stream.STDERR]),
        truncated=transcript.truncated,
        results=tuple(transcript.results),
        error=transcript.error,
        exited=transcript.exited,
        files=files,
        missing=missing,
        timings=RunTimings(
            acquire_ns=sandbox.acquire_ns,
            upload_ns=uploaded - begun,
            first_output_ns=transcript.first_output_ns,
            execute_ns=executed - uploaded,
            collect_ns=time.perf_counter_ns() - executed,
        ),
        receipt=sandbox.receipt,
    )


def _longest(what: Command | Code) -> float | None:
    """Return how long the whole may take: a sandbox counts waiting only, but nobody reads slowly
    here, and a guest that talks without end is not to stretch its time.
    """
    return None if what.timeout is None else what.timeout + GRACE


@contextlib.asynccontextmanager
async def _limit(timeout: float | None, what: str) -> AsyncIterator[None]:
    """Give the guest up when it takes longer; nothing that it says can stretch this."""
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            yield
    except TimeoutError as err:
        if not limit.expired():
            raise
        raise GuestError(
            f"the guest did not {what} within {timeout} s", code="guest_unresponsive"
        ) from err


async def _upload(sandbox: Sandbox, request: RunRequest) -> None:
    for path, content in request.files.items():
        async with sandbox.attended() as agent:
            await agent.write_file(path, _once(content), user=request.what.user)


async def _execute(sandbox: Sandbox, request: RunRequest) -> _Transcript:
    transcript = _Transcript(request)
    async with sandbox.execute(request.what) as execution:
        await _feed_and_follow(execution, transcript, request.stdin)
    return transcript


async def _feed_and_follow(
    execution: TimedExecution, transcript: _Transcript, stdin: bytes
) -> None:
    """Write stdin while output is read: a program may not take its input before it could write."""
    if not stdin:
        await transcript.follow(execution)
        return
    feeding = asyncio.create_task(_feed(execution, stdin))
    try:
        await transcript.follow(execution)
    finally:
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)


async def _feed(execution: TimedExecution, stdin: bytes) -> None:
    # A program that ends or closes its input early is no failure of the run; a guest that is lost
    # is told by the reading side.
    with contextlib.suppress(ConflictError, GuestError):
        await execution.write_stdin(stdin)
        await execution.close_stdin()


async def _collect(
    sandbox: Sandbox, request: RunRequest
) -> tuple[dict[str, bytes], dict[str, GuestFileError]]:
    files: dict[str, bytes] = {}
    missing: dict[str, GuestFileError] = {}
    left = request.file_limit_bytes
    for path in request.collect:
        try:
            async with sandbox.attended() as agent:
                content = await _read(agent, path, user=request.what.user, most=left)
        except GuestFileError as err:
            missing[path] = err
            continue
        if content is None:
            missing[path] = GuestFileError(
                f"{path!r} is over what is left of the limit of {request.file_limit_bytes} bytes",
                code="file_too_large",
                remedy="use a sandbox and download the file from it",
            )
            continue
        left -= len(content)
        files[path] = content
    return files, missing


async def _read(agent: Agent, path: str, *, user: str, most: int) -> bytes | None:
    """Return a file's content, `None` when that is over `most` bytes."""
    content = bytearray()
    reading = agent.read_file(path, user=user, length=most + 1)
    async with contextlib.aclosing(reading) as chunks:
        async for chunk in chunks:
            content += chunk
            if len(content) > most:  # counted here: the guest may send more than it was asked for
                return None
    return bytes(content)


def _size(form: tuple[str, str]) -> int:
    return sum(len(text.encode()) for text in form)


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
