"""Burst: as many creates at one moment as there are clones ready."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bench import room
from bench.load import What, send
from bench.measurement import Chapter, Effort, Findings, Measurement, Pace, Rounds
from bench.resting import emptied, settle
from bench.samples import Target
from vmpool.errors import VmpoolError
from vmpool.policy import Limits

if TYPE_CHECKING:
    from bench.subject import Subject

AT_ONCE = 100
AT_ONCE_QUICK = 16
WITHIN = Target(value=400.0)
SECONDS = 60.0


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Fill the pool, then have everybody create at once; a round is one burst."""
    wished = AT_ONCE if pace.effort is Effort.FULL else AT_ONCE_QUICK
    at_once = min(wished, room.clones())
    if at_once < wished:
        findings.remark(f"a burst of {wished} does not fit into memory: {at_once}")
    parallel = max(2, os.cpu_count() or 1)
    limits = Limits(ready=at_once, total=at_once, parallel_restores=parallel)
    async with emptied(subject.pool):
        for _ in pace.turns():
            try:
                await settle(subject.pool, limits, timeout=room.FILL_SECONDS)
                await _once(subject, at_once, findings)
            except VmpoolError as err:
                findings.fail(err)


async def _once(subject: Subject, at_once: int, findings: Findings) -> None:
    tally = await send(subject, What.CREATE, clients=at_once, requests=at_once, seconds=SECONDS)
    findings.failures += tally.failures[:3]
    for ended in tally.ended_ms:
        findings.series(f"create, one of {at_once} at once").add(ended)
    if len(tally.ended_ms) == at_once:
        target = WITHIN if at_once == AT_ONCE else None
        findings.series(f"all {at_once} created", target=target).add(max(tally.ended_ms))


MEASUREMENT = Measurement(
    name="burst",
    summary="100 creates at one moment, 16 in a quick run, with as many clones ready",
    rounds=Rounds(quick=1, full=5),
    weight=5,
    measure=measure,
    chapter=Chapter.SCALE,
    conditions={"page cache": "warm", "pool": "a ready clone for each, no refill"},
)
