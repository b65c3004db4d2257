"""Isolation: what each wall around a hypervisor costs a restore, and all of them together.

Every round restores one clone behind each set of walls, in an order that rotates, and kills it
before the next begins: what disturbs the machine disturbs all sets alike. An account without rights
is part of all of them: QEMU never runs as root.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from bench.samples import Target
from vmpool import clone
from vmpool.engine.qemu import QemuEngine
from vmpool.engine.qemu.jail.wall import Wall
from vmpool.errors import VmpoolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.subject import Subject

ALL, NONE = "all walls", "account alone"
COST = Target(value=15.0)


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Restore and kill behind each set of walls in turn; compare with none of them."""
    found = await QemuEngine.detect()
    try:
        for lack in found.isolation.lacks:
            findings.remark(f"without {lack.wall}: {lack.why}")
        engines = _engines(found)
        for name in engines:
            await _once(subject, engines[name])  # what is first is slower
        names = list(engines)
        for turn in pace.turns():
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                try:
                    resumed, killed = await _once(subject, engines[name])
                except VmpoolError as err:
                    findings.fail(err)
                    continue
                findings.series(f"{name}: to resumed").add(resumed)
                findings.series(f"{name}: killed").add(killed)
    finally:
        found.close()
    _compare(findings, engines)


def _engines(found: QemuEngine) -> Mapping[str, QemuEngine]:
    """Return one engine with all walls, one with none, and one with each of them alone."""
    walls = [wall for wall in Wall if wall in found.isolation.walls and wall is not Wall.ACCOUNT]
    sets = {NONE: walls, ALL: []} | {
        f"{wall} alone": [other for other in walls if other is not wall] for wall in walls
    }
    return {name: found.behind(found.isolation.without(*less)) for name, less in sets.items()}


def _compare(findings: Findings, engines: Mapping[str, QemuEngine]) -> None:
    base = findings.series(f"{NONE}: to resumed")
    for name in engines:
        series = findings.series(f"{name}: to resumed")
        if name != NONE and base.samples and series.samples:
            added = series.median - base.median
            target = COST if name == ALL else None
            findings.series(f"{name}: added", unit="ms of medians", target=target).add(added)


async def _once(subject: Subject, engine: QemuEngine) -> tuple[float, float]:
    """Restore and kill one clone; return milliseconds until it ran, and until it was gone."""
    stand = subject.stand
    restored = await clone.restore(
        engine, subject.template.snapshot, run=stand.clones, deadlines=stand.deadlines
    )
    began = time.perf_counter_ns()
    await restored.kill()
    timings = restored.timings
    resumed_ns = timings.spawn_ns + timings.load_ns + timings.resume_ns
    return resumed_ns / 1e6, (time.perf_counter_ns() - began) / 1e6


MEASUREMENT = Measurement(
    name="isolation",
    summary="a clone from nothing behind each wall of its hypervisor, in turn",
    rounds=Rounds(quick=8, full=60),
    weight=4,
    measure=measure,
    chapter=Chapter.START,
)
