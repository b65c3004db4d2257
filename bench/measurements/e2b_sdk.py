"""E2B SDK: a sandbox created, a command and `1+1` in it, through E2B's own client, unmodified.

The client is a program of its own, run by a Python that has the SDK: the one that the variable
`VMPOOL_BENCH_E2B` names, or this one. Times are the client's, its own work included.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from bench.resting import emptied, settle
from bench.samples import Target
from bench.stand import ANSWER_TIMEOUT
from vmpool.errors import InfrastructureError, VmpoolError
from vmpool.policy import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.subject import Subject

_PROGRAM = Path(__file__).parent.parent / "e2b_program.py"
_READY = Limits(ready=1, total=1)
_TARGETS = {
    "create, a clone ready": Target(value=8.0),
    "echo hi: later": Target(value=20.0),
    "1+1: later": Target(value=20.0),
}
TIMES = 10
"""That a command and code are run in each sandbox."""


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Create a sandbox each round, run a command and code in it again and again, and kill it."""
    python = await _python()
    if python is None:
        findings.remark("no Python here has the SDK: name one in VMPOOL_BENCH_E2B")
        return
    async with emptied(subject.pool), _running(python, subject) as client:
        for turn in pace.turns():
            try:
                await settle(subject.pool, _READY)
                times = await _round(client)
            except VmpoolError as err:
                findings.fail(err)
                continue
            for name, took in times if turn else ():  # the first connects, and imports
                findings.series(name, target=_TARGETS.get(name)).add(took)


async def _round(client: _Client) -> list[tuple[str, float]]:
    """Return what one sandbox's life took, piece by piece."""
    times = [("create, a clone ready", await client.do("create"))]
    try:
        for number in range(TIMES):
            which = "later" if number else "first"
            times.append((f"echo hi: {which}", await client.do("command")))
        for number in range(TIMES):
            which = "later" if number else "first, makes the context"
            times.append((f"1+1: {which}", await client.do("code")))
    finally:
        times.append(("kill", await client.do("kill")))
    return times


class _Client:
    """The program, and its answers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def do(self, word: str) -> float:
        """Have it do something; return how long that took in ms.

        Raises:
            InfrastructureError: It failed, or did not end in time.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
        return float((await self.answered())["took_ms"])

    async def answered(self) -> dict[str, Any]:
        """Return its next answer.

        Raises:
            InfrastructureError: It failed, or said nothing in time.
        """
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                said = json.loads(await self._process.stdout.readline() or "{}")
        except TimeoutError as err:
            raise InfrastructureError("the SDK does not answer") from err
        if "error" in said:
            raise InfrastructureError(f"the SDK failed: {said['error']}")
        return dict(said)


async def _python() -> str | None:
    """Return a Python that has the SDK."""
    python = os.environ.get("VMPOOL_BENCH_E2B", sys.executable)
    asking = (python, "-c", "import e2b_code_interpreter")
    try:
        process = await asyncio.create_subprocess_exec(
            *asking, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
        )
    except OSError:
        return None
    return python if await process.wait() == 0 else None


@contextlib.asynccontextmanager
async def _running(python: str, subject: Subject) -> AsyncIterator[_Client]:
    endpoint = subject.stand.endpoint
    process = await asyncio.create_subprocess_exec(
        *(python, _PROGRAM, subject.template.name),
        env={
            **os.environ,
            "E2B_API_KEY": endpoint.token or "e2b_0",
            "E2B_API_URL": endpoint.url,
            "E2B_SANDBOX_URL": endpoint.url,
        },
        stdin=PIPE,
        stdout=PIPE,
    )
    try:
        client = _Client(process)
        await client.answered()
        yield client
    finally:
        await _ended(process)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Let the program kill its sandbox and end; end it if it does not."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


MEASUREMENT = Measurement(
    name="e2b",
    summary="a sandbox, a command and 1+1 through E2B's own Python SDK",
    rounds=Rounds(quick=3, full=20),
    weight=2,
    measure=measure,
    chapter=Chapter.SESSION,
)
