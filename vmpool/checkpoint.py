"""Checkpoint: a clone saved as what differs from its template, while it runs on.

The recipe of one save: count, pause, take, resume, write, publish. Whatever fails, the clone runs
on, and there is the whole checkpoint or none. It knows no sandbox; whose clone it is and when a
checkpoint goes, others decide.
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

from vmpool import snapshot
from vmpool.cancellation import uninterrupted
from vmpool.errors import EngineError
from vmpool.snapshot import Snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.clone import Clone
    from vmpool.engine import Capture, Machine
    from vmpool.snapshot import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveTimings:
    """How long each phase of one save took, in nanoseconds of the monotonic clock.

    Attributes:
        prepare_ns: Counting what there is to copy; the clone runs.
        paused_ns: From the order to pause until it ran again.
        write_ns: Writing what was taken; the clone runs.
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


async def save(clone: Clone, template: Snapshot, *, id: str, snapshots: Path) -> Saved:
    """Save a running clone and publish what was saved; the clone runs on, whatever happens.

    Not beside another save of the same clone. On any failure and on cancellation there is no
    checkpoint.

    Args:
        template: What the clone was restored from, itself or its forebears.
        id: The checkpoint's name.
        snapshots: Directory of published snapshots.

    Raises:
        ConflictError: `snapshot_exists`.
        EngineError: The hypervisor failed or died.
        HostError: `memory_unreadable`; this process may not read the clone's memory.
        DiskFullError, SnapshotError: The checkpoint could not be written.
    """
    laps = [time.perf_counter_ns()]
    directory = snapshot.begin(snapshots)
    try:
        async with clone.machine.capture(directory) as capture:
            laps.append(time.perf_counter_ns())
            await _take(clone.machine, capture)
            laps.append(time.perf_counter_ns())
            await capture.write()
            laps.append(time.perf_counter_ns())
        describe = partial(_describe, directory, template, id)
        manifest = await uninterrupted(asyncio.to_thread(describe))
    except BaseException:
        await uninterrupted(asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True))
        raise
    published = await _publish(directory, manifest, snapshots)
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
    """Hold the machine still for as long as it takes to copy it."""
    try:
        await machine.pause()
        await capture.take()
    except BaseException:
        # It runs on also when the pause was cut short; a dead one is somebody else's to notice.
        with contextlib.suppress(EngineError):
            await uninterrupted(machine.resume())
        raise
    await uninterrupted(machine.resume())


async def _publish(directory: Path, manifest: Manifest, snapshots: Path) -> Snapshot:
    """Publish; a caller that is cancelled meanwhile knows of no checkpoint, so there is none."""
    publishing = asyncio.ensure_future(
        asyncio.to_thread(snapshot.publish, directory, manifest, snapshots)
    )
    try:
        return await uninterrupted(publishing)
    except asyncio.CancelledError:
        if publishing.exception() is None:
            await uninterrupted(asyncio.to_thread(publishing.result().remove))
        raise


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
