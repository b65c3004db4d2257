"""Neighbours: what a guest that takes all it can costs the one beside it.

In each round, for each misdeed in turn: a new sandbox; how long `echo $((1+1))` takes in a shell of
another one, which is kept, while the new one rests, and then while it does its worst. The two are
compared within the same minute, so that what else goes on on the machine is in both. Beside all of
them stands a process of the host that spins, in no guest and as nice as can be: what two hardware
threads of one core, say, take from each other by themselves, and no pool can give back.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from bench.resting import at_rest, emptied, settle
from bench.samples import Series, Target
from bench.sandboxes import held, run_in_context
from vmpool.errors import InfrastructureError, VmpoolError
from vmpool.policy import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.subject import Subject

SLOWER_AT_MOST = Target(value=1.2)
SAMPLES = 20
HEAT_SECONDS = 2.0
"""From the begin of a misdeed until it is at its worst, or nearly."""

PROCESS = "a process of the host spins, nice 19"
SPINNING = (sys.executable, "-c", "while True: pass")
LANGUAGE, CODE = "bash", "echo $((1+1))"

_TWO = Limits(ready=1, total=3)


@dataclass(frozen=True, slots=True)
class Misdeed:
    """What a guest does to its neighbours.

    Attributes:
        script: Run by bash, as root, for as long as it is let.
        network: Mode of its sandbox.
    """

    name: str
    script: str
    network: str = "none"


MISDEEDS = (
    Misdeed("spins", "while :; do :; done"),
    Misdeed("fills its disk", "while :; do dd if=/dev/zero of=/var/tmp/fill bs=1M; sync; done"),
    Misdeed("fills its memory", "while :; do bash -c 'x=abcdefgh; while :; do x=$x$x; done'; done"),
    Misdeed("fills its process table", "f() { f | f & }; while :; do f; sleep 1; done"),
    Misdeed("floods output", "yes 0123456789012345678901234567890123456789"),
    Misdeed(
        "floods network",
        "while :; do echo flood; done > /dev/udp/203.0.113.1/9",
        network="open",
    ),
    Misdeed("stops answering", "kill -STOP -1"),
)


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Time code beside each misdeed and before it; compare the medians in the end."""
    async with emptied(subject.pool):
        await settle(subject.pool, _TWO)
        async with held(subject) as victim:
            await _times(subject, victim, Series("the first, which are slower", "ms"))
            for _ in pace.turns():
                await _beside_process(subject, victim, findings)
                for misdeed in MISDEEDS:
                    try:
                        await _beside(subject, victim, misdeed, findings)
                    except VmpoolError as err:
                        findings.fail(err)
    for name in (PROCESS, *(misdeed.name for misdeed in MISDEEDS)):
        before, during = (findings.series(series) for series in _names(name))
        if before.samples and during.samples:
            target = None if name == PROCESS else SLOWER_AT_MOST
            ratio = findings.series(f"{name}: ratio", "of medians", target)
            ratio.add(during.median / before.median)


async def _beside(subject: Subject, victim: str, misdeed: Misdeed, findings: Findings) -> None:
    quiet, worst = _names(misdeed.name)
    async with held(subject, misdeed.network) as culprit:
        await at_rest(subject.pool, ready=_TWO.ready, held=2)  # a refill is no misdeed
        await _times(subject, victim, findings.series(quiet))
        async with _doing(subject, culprit, misdeed):
            await asyncio.sleep(HEAT_SECONDS)
            await _times(subject, victim, findings.series(worst))


async def _beside_process(subject: Subject, victim: str, findings: Findings) -> None:
    quiet, worst = _names(PROCESS)
    await at_rest(subject.pool, ready=_TWO.ready, held=1)
    await _times(subject, victim, findings.series(quiet))
    process = await asyncio.create_subprocess_exec("nice", "-n", "19", *SPINNING)
    try:
        await _times(subject, victim, findings.series(worst))
    finally:
        process.kill()
        await process.wait()


def _names(name: str) -> tuple[str, str]:
    return f"{name}: before", f"{name}: meanwhile"


async def _times(subject: Subject, victim: str, series: Series) -> None:
    """Add the milliseconds that some requests took in turn."""
    for _ in range(SAMPLES):
        took = await run_in_context(subject, victim, LANGUAGE, CODE)
        if took is None:
            raise InfrastructureError("the image has no shell that stays")
        series.add(took)


@contextlib.asynccontextmanager
async def _doing(subject: Subject, culprit: str, misdeed: Misdeed) -> AsyncIterator[None]:
    """Have a guest do it for the time of the block, and somebody read what it says."""
    doing = asyncio.create_task(_follow(subject, culprit, misdeed))
    try:
        yield
    finally:
        doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)


async def _follow(subject: Subject, culprit: str, misdeed: Misdeed) -> None:
    body = {"argv": ["/bin/bash", "-c", misdeed.script], "user": "root", "timeout": 300}
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        async with subject.stand.client.post(
            f"/v1/sandboxes/{culprit}/exec", json=body
        ) as response:
            async for _ in response.content.iter_any():
                pass


MEASUREMENT = Measurement(
    name="neighbours",
    summary="code in one sandbox while another takes all it can, each misdeed in turn",
    rounds=Rounds(quick=1, full=5),
    weight=4,
    measure=measure,
    chapter=Chapter.SCALE,
    conditions={"page cache": "warm", "pool": "one ready clone"},
)
