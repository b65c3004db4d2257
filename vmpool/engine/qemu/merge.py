"""Merge: what lies between a template's disk and an overlay, copied into the overlay by QEMU.

It reads layers that checkpoints share and writes none of them. The guest runs meanwhile; what it
writes is newer, and stays. A job of QEMU's own, so that it goes on when its manager dies, and one
that is given up has done no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from vmpool.cancellation import uninterrupted
from vmpool.errors import DiskFullError, EngineError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from typing import Any

    from vmpool.engine.qemu.hypervisor import Hypervisor

TIMEOUT = 600.0
"""Seconds that a merge may take; it copies as fast as the disk does."""

_CANCEL_TIMEOUT = 30.0
_JOB = "merge"
_EVENTS = ("BLOCK_JOB_COMPLETED", "JOB_STATUS_CHANGE")
_NO_SPACE = "No space left"


async def run(started: Hypervisor, *, into: str, above: str) -> None:
    """Copy what the nodes between `above` and `into` hold into the latter, and leave them out.

    When it was cancelled or has failed, whether they are left out is unknown; ask QEMU.

    Raises:
        EngineError: QEMU refused, failed or died, or took too long (`disk_unmerged`).
        DiskFullError: The disk is full.
    """
    try:
        with started.monitor.hearing(*_EVENTS) as heard:
            await started.execute(
                "block-stream",
                **{"job-id": _JOB, "device": into, "base-node": above},
                # No name of a file that QEMU would open by itself.
                backing_file="",
            )
            async with asyncio.timeout(TIMEOUT):
                failure = await _ended(started, heard)
    except BaseException as err:
        with contextlib.suppress(EngineError):
            await uninterrupted(give_up(started))
        if isinstance(err, TimeoutError):
            raise _unmerged(f"no end within {TIMEOUT:g} s") from err
        raise
    if _NO_SPACE in failure:
        raise DiskFullError("no space to merge the layers of a machine's disk")
    if failure:
        raise _unmerged(failure)


async def give_up(started: Hypervisor) -> None:
    """End a merge that goes on, whoever began it. *Idempotent.*

    Raises:
        EngineError: QEMU failed or died, or did not end it in time (`disk_unmerged`).
    """
    with started.monitor.hearing(*_EVENTS) as heard:
        jobs = await started.execute("query-jobs")
        if not any(job["id"] == _JOB for job in jobs):
            return
        with contextlib.suppress(EngineError):  # it may just have come to its end
            await started.execute("block-job-cancel", device=_JOB)
        try:
            async with asyncio.timeout(_CANCEL_TIMEOUT):
                await _ended(started, heard)
        except TimeoutError as err:
            raise _unmerged("it cannot be given up") from err


async def _ended(started: Hypervisor, heard: Callable[[], Awaitable[Mapping[str, Any]]]) -> str:
    """Return why the job failed once it is gone; empty when it did not."""
    job = asyncio.ensure_future(_gone(heard))
    death = asyncio.ensure_future(started.process.wait())
    try:
        await asyncio.wait((job, death), return_when=asyncio.FIRST_COMPLETED)
    finally:
        job.cancel()
        death.cancel()
        await asyncio.wait((job, death))
    if job.cancelled():
        raise EngineError("QEMU ended as it merged layers", code="qemu_died")
    return job.result()


async def _gone(heard: Callable[[], Awaitable[Mapping[str, Any]]]) -> str:
    failure = ""
    while True:
        data = (await heard())["data"]
        if data.get("device") == _JOB:
            failure = str(data.get("error", ""))
        if data.get("id") == _JOB and data["status"] == "null":
            return failure


def _unmerged(why: str) -> EngineError:
    return EngineError(f"the layers of a disk were not merged: {why}", code="disk_unmerged")
