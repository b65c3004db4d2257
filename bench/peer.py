"""Peer: something else that could run the same line of Python, measured beside vmpool.

A peer is a module in `bench/peers` that ends in one `PEER`; the measurement `peers` finds it there.
It is opened once, which may take a while, and then started again and again, each time from nothing
to the output of the line. It ends what it started before `start` returns, also when it is
cancelled; the time that this takes is not counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.line import FIRST_OUTPUT, OUTPUT
from bench.subject import Subject
from vmpool.errors import InfrastructureError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from os import PathLike

START_TIMEOUT = 90.0
"""Seconds after which a start has failed: a guest that boots under emulation takes up to 20."""

_STDERR_BYTES = 4096

Phases = Mapping[str, float]
"""Milliseconds from a start's beginning until each thing was reached, `FIRST_OUTPUT` among them."""

Start = Callable[[], Awaitable[Phases]]


class UnavailableError(Exception):
    """A peer cannot be measured here; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arena:
    """Where peers are measured.

    Attributes:
        subject: Whose image they run.
        directory: Theirs, on the state's disk; empty at first and removed in the end.
        sockets: The same for what needs a short path.
    """

    subject: Subject
    directory: Path
    sockets: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One way to run the line.

    Attributes:
        name: What the series begin with.
        summary: What exactly is done, for whoever judges the comparison.
        open: Yields what starts it; raises `UnavailableError` where it cannot be, and whatever a
            start of it raises.
    """

    name: str
    summary: str
    open: Callable[[Arena], AbstractAsyncContextManager[Start]]


class Clock:
    """Phases of one start, as they are reached."""

    def __init__(self) -> None:
        self.phases: dict[str, float] = {}
        self._began = time.perf_counter_ns()

    def reached(self, phase: str) -> None:
        """Note that a phase is reached now."""
        self.phases[phase] = (time.perf_counter_ns() - self._began) / 1e6


async def run_line(argv: Sequence[str | PathLike[str]], *, cwd: Path | None = None) -> Phases:
    """Start a program that prints what the line does, and let it end.

    Returns:
        When its output came, and when it had ended.

    Raises:
        UnavailableError: There is no such program.
        InfrastructureError: It printed something else, or nothing in time.
    """
    clock = Clock()
    async with _running(argv, cwd) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = await process.stdout.readline()
        clock.reached(FIRST_OUTPUT)
        complaint = b"" if said == OUTPUT else await process.stderr.read(_STDERR_BYTES)
        await process.wait()
        clock.reached("end")
    if said != OUTPUT:
        words = complaint.decode(errors="replace").strip().rpartition("\n")[2]
        raise InfrastructureError(f"{argv[0]} printed {said!r}: {words}")
    return clock.phases


@contextlib.asynccontextmanager
async def _running(
    argv: Sequence[str | PathLike[str]], cwd: Path | None
) -> AsyncIterator[asyncio.subprocess.Process]:
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, cwd=cwd
        )
    except FileNotFoundError as err:
        raise UnavailableError(f"{argv[0]} is not installed") from err
    try:
        async with asyncio.timeout(START_TIMEOUT):
            yield process
    except TimeoutError as err:
        raise InfrastructureError(f"{argv[0]} did not end within {START_TIMEOUT:g} s") from err
    finally:
        await _ended(process)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """See that a process is gone and its pipes are closed."""
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def tried(start: Start) -> Start:
    """Return `start` once it has worked: what is installed may still not run here.

    Raises:
        UnavailableError: It does not.
    """
    try:
        await start()
    except InfrastructureError as err:
        raise UnavailableError(err.message) from err
    return start
