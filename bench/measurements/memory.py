"""Memory: what one more clone costs, with several alive at the same time.

Unshared is what the host gets back when the clone is killed: the private pages of its hypervisor.
PSS adds its share of the pages that it maps together with the others.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from bench import smaps
from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from bench.measurements.outputs import IMPORT, LIBRARY
from bench.samples import Target
from vmpool.clone import warm
from vmpool.errors import GuestError, HostError
from vmpool.model import Code, Exited

if TYPE_CHECKING:
    from bench.subject import Subject
    from vmpool.clone import Clone

UNSHARED = Target(value=45.0)
IMPORT_TIMEOUT = 60.0
LEAST_CLONES = 6
"""With fewer alive, what they share is not yet small in each one's share."""


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Restore clones, look; run once in each, look again; kill them all."""
    async with contextlib.AsyncExitStack() as alive:
        clones: list[Clone] = []
        for turn in range(pace.rounds):
            if turn >= LEAST_CLONES and pace.over:
                break
            restored = await subject.restore(subject.template)
            alive.push_async_callback(restored.kill)
            clones.append(restored)
        await _look("ready", subject, clones, findings, target=None)
        for held in clones:
            await held.activate()
            await warm(held.agent, timeout=subject.stand.deadlines.warm)
        await _look("after its first run", subject, clones, findings, target=UNSHARED)
        if LIBRARY in subject.image.manifest.packages:
            for held in clones:
                await _import(held)
            await _look("after an import of numpy", subject, clones, findings, target=None)


async def _import(clone: Clone) -> None:
    async with clone.agent.execute(Code(source=IMPORT, timeout=IMPORT_TIMEOUT)) as execution:
        end = [event async for event in execution][-1]
    if end != Exited(exit_code=0):
        raise GuestError(f"cannot import numpy in the guest: {end!r}", code="guest_unfit")


async def _look(
    when: str, subject: Subject, clones: list[Clone], findings: Findings, *, target: Target | None
) -> None:
    unshared = findings.series(f"{when}: unshared", unit="MB", target=target)
    proportional = findings.series(f"{when}: PSS", unit="MB")
    guest_ram = subject.template.snapshot.memory
    breakdown = []
    for one in clones:
        try:
            usage = await asyncio.to_thread(smaps.read, one.machine.pid, guest_ram=guest_ram)
        except PermissionError as err:
            raise HostError(
                f"cannot read the memory map of process {one.machine.pid}: {err.strerror}",
                code="bench_unprivileged",
                remedy="run the benchmark as root",
            ) from err
        unshared.add(usage.total.private_bytes / 1e6)
        proportional.add(usage.total.pss_bytes / 1e6)
        breakdown.append({kind.value: part.as_data() for kind, part in usage.parts.items()})
    findings.notes[when] = breakdown


MEASUREMENT = Measurement(
    name="memory",
    summary="unshared and proportional memory of a clone among several",
    rounds=Rounds(quick=LEAST_CLONES, full=12),
    weight=1,
    measure=measure,
    chapter=Chapter.COST,
)
