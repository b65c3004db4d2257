"""Crowd: what a create costs beside so many other clones that are alive and idle."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from bench import room
from bench.measurement import Chapter, Effort, Findings, Measurement, Pace, Rounds
from bench.resting import at_rest, emptied, settle
from bench.samples import Target
from bench.sandboxes import ask, create
from vmpool.errors import VmpoolError
from vmpool.policy import Limits

if TYPE_CHECKING:
    from bench.subject import Subject

ALIVE_QUICK = (2, 10, 20)
ALIVE = (10, 100, 300)
SLOWER_AT_MOST = Target(value=1.3)
SAMPLES_QUICK = 4
SAMPLES = 30


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Let the crowd grow; a round is one size of it."""
    full = pace.effort is Effort.FULL
    sizes, samples = (ALIVE, SAMPLES) if full else (ALIVE_QUICK, SAMPLES_QUICK)
    async with emptied(subject.pool):
        for turn in pace.turns():
            alive = sizes[turn]
            if alive > room.clones():
                findings.remark(f"{alive} clones: skipped: they do not fit into memory")
                continue
            try:
                await _beside(subject, alive, samples, findings)
            except VmpoolError as err:
                findings.fail(err)
    medians = [one.median for one in findings.all_series if one.name.endswith("create")]
    if len(medians) > 1:
        name = f"create beside {sizes[len(medians) - 1]} over beside {sizes[0]}"
        ratio = findings.series(name, "of medians", SLOWER_AT_MOST)
        ratio.add(medians[-1] / medians[0])


async def _beside(subject: Subject, alive: int, samples: int, findings: Findings) -> None:
    parallel = max(2, os.cpu_count() or 1)
    limits = Limits(ready=alive, total=alive, parallel_restores=parallel)
    began = time.monotonic()
    await settle(subject.pool, limits, timeout=room.FILL_SECONDS)
    findings.notes[f"{alive} alive after seconds"] = time.monotonic() - began
    for _ in range(samples):
        made = await create(subject)
        findings.series(f"{alive} alive: create").add(made.milliseconds)
        killed = await ask(subject, "DELETE", f"/v1/sandboxes/{made.values['id']}")
        findings.series(f"{alive} alive: kill").add(killed.milliseconds)
        await at_rest(subject.pool, ready=alive)


MEASUREMENT = Measurement(
    name="crowd",
    summary="a create beside 10, 100 and 300 idle clones; 2, 10 and 20 in a quick run",
    rounds=Rounds(quick=len(ALIVE_QUICK), full=len(ALIVE)),
    weight=7,
    measure=measure,
    chapter=Chapter.SCALE,
    conditions={
        "page cache": "warm",
        "pool": "all of them ready, refilled after each",
    },
)
