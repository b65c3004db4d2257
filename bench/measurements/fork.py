"""Fork: a running clone saved, what was saved resumed, and children that go on from it at once.

One parent for each amount of memory written, all of them in turn. What is loaded goes into
hypervisors that were waiting for it, and is killed before the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from dataclasses import fields
from typing import TYPE_CHECKING

from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from bench.samples import Target
from vmpool import checkpoint
from vmpool.agent import Peer
from vmpool.cancellation import uninterrupted
from vmpool.clone import claim_directory
from vmpool.clone.introduction import introduce
from vmpool.errors import GuestError, VmpoolError
from vmpool.model import MIB, Attachment, Command, Exited, Identity, Unique, new_id

if TYPE_CHECKING:
    from bench.subject import Subject
    from vmpool.checkpoint import Saved
    from vmpool.clone import Clone
    from vmpool.engine import Shell
    from vmpool.snapshot import Snapshot

WRITTEN_MIB = (0, 8, 32)
"""What a parent writes, on top of what waking up and one run have written already."""

CHILDREN = 3

PAUSED = Target(value=20.0)
RESUMED = Target(value=30.0)
TO_CHILD = Target(value=60.0)
FURTHER_CHILD = Target(value=20.0)
TO_ANSWER = Target(value=180.0)
_WRITE_TIMEOUT = 60.0


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Fork each parent in turn; the order rotates."""
    async with contextlib.AsyncExitStack() as alive:
        parents: list[tuple[int, Clone]] = []
        for mebibytes in WRITTEN_MIB:
            parent = await subject.restore(subject.template)
            alive.push_async_callback(parent.kill)
            await parent.activate()
            await _write(parent, mebibytes)
            parents.append((mebibytes, parent))
        for turn in pace.turns():
            start = turn % len(parents)
            for mebibytes, parent in parents[start:] + parents[:start]:
                try:
                    await _once(subject, parent, f"{mebibytes} MiB written", findings)
                except VmpoolError as err:
                    findings.fail(err)


async def _write(parent: Clone, mebibytes: int) -> None:
    line = f"head -c {mebibytes * MIB} /dev/urandom > /dev/shm/ballast"
    command = Command(argv=("/bin/sh", "-c", line), timeout=_WRITE_TIMEOUT)
    async with parent.agent.execute(command) as execution:
        end = [event async for event in execution][-1]
    if end != Exited(exit_code=0):
        raise GuestError(f"cannot write {mebibytes} MiB in the guest: {end!r}", code="guest_unfit")


async def _once(subject: Subject, parent: Clone, what: str, findings: Findings) -> None:
    """Save the parent and load what was saved; then fork it into several, and into one."""
    template, place = subject.template.snapshot, subject.stand.clones
    async with contextlib.AsyncExitStack() as undo:
        saved = await checkpoint.save(
            parent, template, id=new_id(), snapshots=template.directory.parent
        )
        undo.callback(saved.snapshot.remove)
        shell = await _shell(subject, undo)
        began = time.perf_counter_ns()
        resumed = await _resumed(shell, saved.snapshot, undo)
        _note(saved, what, findings)
        series = findings.series(f"{what}: saved state resumed", target=RESUMED)
        series.add((resumed - began) / 1e6)
    async with contextlib.AsyncExitStack() as undo:
        shells = [await _shell(subject, undo) for _ in range(CHILDREN)]
        began = time.perf_counter_ns()
        async with checkpoint.branch(parent, template, at=place) as state:
            branched = time.perf_counter_ns()
            ends = await asyncio.gather(*(_resumed(shell, state, undo) for shell in shells))
    findings.series(f"{what}: branched").add((branched - began) / 1e6)
    first, last = min(ends), max(ends)
    findings.series(f"{what}: first child", target=TO_CHILD).add((first - began) / 1e6)
    further = (last - first) / (CHILDREN - 1) / 1e6
    findings.series(f"{what}: each further child", target=FURTHER_CHILD).add(further)

    async with contextlib.AsyncExitStack() as undo:
        took = await _answered(subject, parent, undo)
    findings.series(f"{what}: first answer of a child", target=TO_ANSWER).add(took / 1e6)


async def _answered(subject: Subject, parent: Clone, undo: contextlib.AsyncExitStack) -> int:
    """Fork into one child; return how long it took until it had confirmed who it is, in ns."""
    template, place = subject.template.snapshot, subject.stand.clones
    shell = await _shell(subject, undo)
    began = time.perf_counter_ns()
    async with checkpoint.branch(parent, template, at=place) as state:
        machine = await shell.load(state)
        undo.push_async_callback(lambda: uninterrupted(machine.kill()))
        await machine.resume()
        agent, _, _ = await introduce(
            machine,
            Identity.fresh(new_id()),
            rng=Unique(),
            clock_offset_ns=0,
            key=parent.key,
            peer=Peer.USED,
            deadlines=subject.stand.deadlines,
        )
        took = time.perf_counter_ns() - began
        await agent.close()
    return took


async def _shell(subject: Subject, undo: contextlib.AsyncExitStack) -> Shell:
    directory = claim_directory(subject.stand.clones)
    undo.callback(shutil.rmtree, directory, ignore_errors=True)
    at = Attachment(directory=directory)
    shell = await subject.stand.engine.prepare(subject.template.snapshot, at)
    undo.push_async_callback(lambda: uninterrupted(shell.kill()))
    return shell


async def _resumed(shell: Shell, state: Snapshot, undo: contextlib.AsyncExitStack) -> int:
    """Load a state, let it run, and return when it did."""
    machine = await shell.load(state)
    undo.push_async_callback(lambda: uninterrupted(machine.kill()))
    await machine.resume()
    return time.perf_counter_ns()


def _note(saved: Saved, what: str, findings: Findings) -> None:
    for phase in fields(saved.timings):
        name = phase.name.removesuffix("_ns")
        target = PAUSED if name == "paused" else None
        milliseconds = getattr(saved.timings, phase.name) / 1e6
        findings.series(f"{what}: {name}", target=target).add(milliseconds)
    stored = sum(path.stat().st_blocks * 512 for path in saved.snapshot.directory.iterdir())
    findings.series(f"{what}: dirty", unit="MB").add(saved.dirty_bytes / 1e6)
    findings.series(f"{what}: stored", unit="MB").add(stored / 1e6)


MEASUREMENT = Measurement(
    name="fork",
    summary="a running clone saved, resumed and forked, by phase and memory written",
    rounds=Rounds(quick=8, full=40),
    weight=2,
    measure=measure,
    chapter=Chapter.SESSION,
)
