"""Fork: a running clone saved while it waits, and a child that goes on from there.

One parent for each amount of memory written, all of them saved in turn. The child is loaded into a
hypervisor that was waiting for it, and killed before the next.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from dataclasses import fields
from typing import TYPE_CHECKING

from bench.measurement import Findings, Measurement, Pace, Rounds
from bench.samples import Target
from vmpool import checkpoint
from vmpool.cancellation import uninterrupted
from vmpool.clone import claim_directory
from vmpool.errors import GuestError, VmpoolError
from vmpool.model import MIB, Attachment, Command, Exited, new_id

if TYPE_CHECKING:
    from bench.subject import Subject
    from vmpool.checkpoint import Saved
    from vmpool.clone import Clone

WRITTEN_MIB = (0, 8, 32)
"""What a parent writes, on top of what waking up and one run have written already."""

PAUSED = Target(value=20.0)
TO_CHILD = Target(value=60.0)
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
    template = subject.template.snapshot
    async with contextlib.AsyncExitStack() as undo:
        directory = claim_directory(subject.stand.clones)
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        shell = await subject.stand.engine.prepare(template, Attachment(directory=directory))
        undo.push_async_callback(lambda: uninterrupted(shell.kill()))
        began = time.perf_counter_ns()
        saved = await checkpoint.save(
            parent, template, id=new_id(), snapshots=template.directory.parent
        )
        undo.callback(saved.snapshot.remove)
        loading = time.perf_counter_ns()
        child = await shell.load(saved.snapshot)
        undo.push_async_callback(lambda: uninterrupted(child.kill()))
        await child.resume()
        resumed = time.perf_counter_ns()
    findings.series(f"{what}: load and resume").add((resumed - loading) / 1e6)
    findings.series(f"{what}: call to child resumed", target=TO_CHILD).add((resumed - began) / 1e6)
    _note(saved, what, findings)


def _note(saved: Saved, what: str, findings: Findings) -> None:
    for phase in fields(saved.timings):
        name = phase.name.removesuffix("_ns")
        target = PAUSED if name == "paused" else None
        milliseconds = getattr(saved.timings, phase.name) / 1e6
        findings.series(f"{what}: {name}", target=target).add(milliseconds)
    stored = sum(file.size_bytes for file in saved.snapshot.manifest.files.values())
    findings.series(f"{what}: dirty", unit="MB").add(saved.dirty_bytes / 1e6)
    findings.series(f"{what}: stored", unit="MB").add(stored / 1e6)


MEASUREMENT = Measurement(
    name="fork",
    summary="a running clone saved, and a child of it, by phase and memory written",
    rounds=Rounds(quick=8, full=40),
    weight=2,
    measure=measure,
)
