"""Restore: a clone from nothing, by phase, for templates of different memory in turn.

Every round restores one clone of each template, in an order that rotates, and kills it before the
next begins: nothing runs beside a restore, and what disturbs the machine disturbs all sizes alike.
One more, of the usual memory, comes of a hypervisor that waits already.
"""

from __future__ import annotations

import time
from dataclasses import fields
from typing import TYPE_CHECKING

from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from bench.measurements.floors import HYPERVISOR
from bench.samples import Target
from bench.subject import LARGE_BYTES, SMALL_BYTES, Subject, Template
from vmpool.errors import VmpoolError

if TYPE_CHECKING:
    from vmpool.clone import RestoreTimings

RESUMED = "to resumed"
TO_RESUMED = Target(value=40.0)
FROM_WAITING = "from a waiting hypervisor"
WAITING_RESUMED = Target(value=8.0)
RATIO = Target(value=1.3)


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Restore and kill in turn; compare the sizes in the end."""
    firsts = {one.size: await _once(subject, one) for one in subject.templates}
    findings.notes["first_restore_ms"] = firsts
    for turn in pace.turns():
        start = turn % len(subject.templates)
        for template in subject.templates[start:] + subject.templates[:start]:
            try:
                phases = await _once(subject, template)
            except VmpoolError as err:
                findings.fail(err)
                continue
            for name, milliseconds in phases.items():
                target = TO_RESUMED if name == RESUMED else None
                series = findings.series(
                    f"{template.size}: {name}",
                    target=target,
                    floor=HYPERVISOR if name == RESUMED else "",
                )
                series.add(milliseconds)
        try:
            await _into_waiting(subject, findings)
        except VmpoolError as err:
            findings.fail(err)
    small, large = (
        findings.series(f"{subject.sized(size).size}: {RESUMED}")
        for size in (SMALL_BYTES, LARGE_BYTES)
    )
    if small.samples and large.samples:
        name = f"{RESUMED}, 2 GiB over 256 MiB"
        findings.series(name, unit="of medians", target=RATIO).add(large.median / small.median)


async def _once(subject: Subject, template: Template) -> dict[str, float]:
    """Restore and kill one clone; return its phases and their sums in milliseconds."""
    restored = await subject.restore(template)
    began = time.perf_counter_ns()
    await restored.kill()
    killed_ns = time.perf_counter_ns() - began
    return _phases(restored.timings) | {"kill": killed_ns / 1e6}


async def _into_waiting(subject: Subject, findings: Findings) -> None:
    """Have a hypervisor wait, restore into it, and kill the clone."""
    template = subject.template
    restored = await subject.restore_into(await subject.stand_by(template))
    await restored.kill()
    timings = restored.timings
    phases = {
        RESUMED: timings.load_ns + timings.resume_ns,
        "to ready": timings.total_ns - timings.spawn_ns,
    }
    for name, took_ns in phases.items():
        findings.series(
            f"{template.size}: {name}, {FROM_WAITING}",
            target=WAITING_RESUMED if name == RESUMED else None,
        ).add(took_ns / 1e6)


def _phases(timings: RestoreTimings) -> dict[str, float]:
    phases = {
        phase.name.removesuffix("_ns"): getattr(timings, phase.name) / 1e6
        for phase in fields(timings)
    }
    resumed = phases["spawn"] + phases["load"] + phases["resume"]
    return phases | {RESUMED: resumed, "to ready": timings.total_ns / 1e6}


MEASUREMENT = Measurement(
    name="restore",
    summary="a clone from nothing and from a waiting hypervisor, memory sizes in turn",
    rounds=Rounds(quick=12, full=60),
    weight=4,
    measure=measure,
    chapter=Chapter.START,
    memory_sizes=(SMALL_BYTES, LARGE_BYTES),
)
