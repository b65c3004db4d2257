"""Checkpoint: a clone saved as what differs from its template.

One recipe, three ways to use it: saved, a clone runs on; halted, it stays as it was saved, either
with all that it was or with its disk alone; branched off, what is saved is for its children alone
and soon gone. Count, pause, take, and what comes
after. Whatever fails, the clone runs on, and there is the whole checkpoint or none. It knows no
sandbox; whose clone it is and when a checkpoint goes, others decide.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from msgspec import structs

from vmpool import faults, snapshot
from vmpool.cancellation import uninterrupted
from vmpool.errors import EngineError
from vmpool.snapshot import FileRecord, Snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from vmpool.clone import Clone
    from vmpool.delta import Delta
    from vmpool.engine import Capture, Machine
    from vmpool.snapshot import Manifest, Publish
    from vmpool.stillness import Stillness

    Taking = Callable[[Capture], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveTimings:
    """How long each phase of one save took, in nanoseconds of the monotonic clock.

    Attributes:
        prepare_ns: Counting what there is to copy; the clone runs.
        paused_ns: From the order to pause until it ran again; of one that stays halted, until all
            was copied.
        write_ns: Writing what was taken.
        publish_ns: Digests, and giving the checkpoint its name.
    """

    prepare_ns: int
    paused_ns: int
    write_ns: int
    publish_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A checkpoint that was published.

    Attributes:
        dirty_bytes: How much memory of its own the clone had.
    """

    snapshot: Snapshot
    dirty_bytes: int
    timings: SaveTimings


async def save(
    clone: Clone,
    template: Snapshot,
    *,
    id: str,
    snapshots: Path,
    publish: Publish = snapshot.publish,
) -> Saved:
    """Save a running clone and publish what was saved; the clone runs on, whatever happens.

    Saves of one clone wait for each other. On any failure and on cancellation there is no
    checkpoint.

    Args:
        template: What the clone was restored from, itself or its forebears.
        id: The checkpoint's name.
        snapshots: Directory of published snapshots.
        publish: Gives what was saved its name, and a signature if it is to be trusted.

    Raises:
        ConflictError: `snapshot_exists`.
        EngineError: The hypervisor failed or died.
        HostError: `memory_unreadable`; this process may not read the clone's memory.
        DiskFullError, SnapshotError: The checkpoint could not be written.
    """
    await clone.awake()
    return await _save(
        clone.machine.capture,
        partial(_take_and_resume, clone.machine),
        template,
        id=id,
        snapshots=snapshots,
        publish=publish,
    )


async def save_disk(
    clone: Clone,
    template: Snapshot,
    stillness: Stillness,
    *,
    id: str,
    snapshots: Path,
    publish: Publish = snapshot.publish,
) -> Saved:
    """Save a running clone's disk alone as `save` does; the clone runs on, whatever happens.

    The guest writes what it holds back before, and writes on once it was copied.

    Args:
        stillness: Of the clone's disk, not begun; it is over when this returns or raises.

    Raises:
        InvalidRequestError: `disk_missing`; the guest has what it writes in its memory.
        GuestError: `disk_unwritten`; it did not write, or not in time.
        VmpoolError: As `save`.
    """
    await clone.awake()
    return await _save(
        clone.machine.capture_disk,
        partial(_take_still_and_resume, clone.machine, stillness),
        template,
        id=id,
        snapshots=snapshots,
        publish=publish,
    )


async def halt(
    clone: Clone,
    template: Snapshot,
    *,
    id: str,
    snapshots: Path,
    publish: Publish = snapshot.publish,
) -> Saved:
    """Save a running clone as `save` does, and leave its virtual CPUs stopped.

    What was saved is the last that the clone did. On any failure and on cancellation it runs on.

    Raises:
        VmpoolError: As `save`.
    """
    await clone.awake()
    try:
        return await _save(
            clone.machine.capture,
            partial(_take, clone.machine),
            template,
            id=id,
            snapshots=snapshots,
            publish=publish,
        )
    except BaseException:
        await _run_on(clone.machine)
        raise


async def halt_disk(
    clone: Clone,
    template: Snapshot,
    stillness: Stillness,
    *,
    id: str,
    snapshots: Path,
    publish: Publish = snapshot.publish,
) -> Saved:
    """Save a running clone's disk alone, and leave its virtual CPUs stopped.

    The guest writes what it holds back before. On any failure and on cancellation it runs on.

    Args:
        stillness: Of the clone's disk, not begun. It holds when this returns: whoever has the
            clone run on after all ends it.

    Raises:
        InvalidRequestError: `disk_missing`; the guest has what it writes in its memory.
        GuestError: `disk_unwritten`; it did not write, or not in time.
        VmpoolError: As `save`.
    """
    await clone.awake()
    try:
        return await _save(
            clone.machine.capture_disk,
            partial(_take_still, clone.machine, stillness),
            template,
            id=id,
            snapshots=snapshots,
            publish=publish,
        )
    except BaseException:
        await _write_on(clone.machine, stillness)
        raise


@contextlib.asynccontextmanager
async def branch(clone: Clone, template: Snapshot, *, at: Path) -> AsyncIterator[Snapshot]:
    """Yield the state of a running clone for its children to be loaded from, as long as the block.

    The clone runs on as soon as it was copied. Its memory is not written where it can be held, and
    nothing is made durable or verified; nothing is left after the block.

    Args:
        template: What the clone was restored from, itself or its forebears.
        at: Directory for what must be written; best one in memory.

    Raises:
        VmpoolError: As `save`.
    """
    await clone.awake()
    directory = snapshot.begin(at)
    try:
        async with clone.machine.capture(directory) as capture:
            await _take_and_resume(clone.machine, capture)
            own = await capture.lend()
            yield _unverified(directory, template, own)
    finally:
        await _removed(directory)


async def _save(
    capturing: Callable[[Path], Capture],
    taking: Taking,
    template: Snapshot,
    *,
    id: str,
    snapshots: Path,
    publish: Publish,
) -> Saved:
    laps = [time.perf_counter_ns()]
    directory = snapshot.begin(snapshots)
    try:
        async with capturing(directory) as capture:
            laps.append(time.perf_counter_ns())
            await taking(capture)
            laps.append(time.perf_counter_ns())
            await capture.write()
            faults.reach("capture.written")
            laps.append(time.perf_counter_ns())
        describe = partial(_describe, directory, template, id)
        manifest = await uninterrupted(asyncio.to_thread(describe))
    except BaseException:
        await _removed(directory)
        raise
    published = await _publish(directory, manifest, snapshots, publish)
    laps.append(time.perf_counter_ns())
    took = [after - before for before, after in itertools.pairwise(laps)]
    return Saved(
        snapshot=published,
        dirty_bytes=capture.dirty_bytes,
        timings=SaveTimings(
            prepare_ns=took[0], paused_ns=took[1], write_ns=took[2], publish_ns=took[3]
        ),
    )


async def _take(machine: Machine, capture: Capture) -> None:
    await machine.pause()
    faults.reach("capture.paused")
    await capture.take()
    faults.reach("capture.taken")


async def _take_still(machine: Machine, stillness: Stillness, capture: Capture) -> None:
    await stillness.begin()
    faults.reach("halt.still")
    await machine.pause()
    stillness.require()
    await capture.take()


async def _take_still_and_resume(machine: Machine, stillness: Stillness, capture: Capture) -> None:
    """Hold the guest's disk still for as long as it takes to copy it."""
    try:
        await _take_still(machine, stillness, capture)
    except BaseException:
        await _write_on(machine, stillness)
        raise
    try:
        await uninterrupted(machine.resume())
    finally:
        await stillness.end()


async def _write_on(machine: Machine, stillness: Stillness) -> None:
    """Resume after a failure, as `_run_on`, and have the guest write to its disk again."""
    try:
        await _run_on(machine)
    finally:
        await stillness.end()


async def _take_and_resume(machine: Machine, capture: Capture) -> None:
    """Hold the machine still for as long as it takes to copy it."""
    try:
        await _take(machine, capture)
    except BaseException:
        await _run_on(machine)
        raise
    await uninterrupted(machine.resume())


async def _run_on(machine: Machine) -> None:
    """Resume after a failure, also when the pause was cut short."""
    with contextlib.suppress(EngineError):  # a dead one is somebody else's to notice
        await uninterrupted(machine.resume())


async def _publish(
    directory: Path, manifest: Manifest, snapshots: Path, publish: Publish
) -> Snapshot:
    """Publish; a caller that is cancelled meanwhile knows of no checkpoint, so there is none."""
    publishing = asyncio.ensure_future(asyncio.to_thread(publish, directory, manifest, snapshots))
    try:
        return await uninterrupted(publishing)
    except asyncio.CancelledError:
        if publishing.exception() is None:
            await uninterrupted(asyncio.to_thread(publishing.result().remove))
        raise


async def _removed(directory: Path) -> None:
    await uninterrupted(asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True))


def _describe(directory: Path, template: Snapshot, id: str) -> Manifest:
    known = template.manifest
    return snapshot.describe(
        directory,
        id=id,
        image=known.image,
        spec=known.spec,
        processor=known.processor,
        created_ns=time.time_ns(),
        base=template.as_base,
    )


def _unverified(directory: Path, template: Snapshot, own: Delta | None) -> Snapshot:
    files = {
        path.name: FileRecord(size_bytes=path.stat().st_size, digest="")
        for path in directory.iterdir()
    }
    known = template.manifest
    manifest = structs.replace(
        known, id=directory.name, files=files, created_ns=time.time_ns(), base=template.as_base
    )
    return Snapshot(directory=directory, manifest=manifest, delta=own)
