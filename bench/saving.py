"""Saving: what QEMU by itself can keep of a whole guest, and load again: a stream, a snapshot."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qemu.qmp import EventListener, QMPError

from bench.containers import checked
from bench.guest import booting, first_output, running
from bench.peer import START_TIMEOUT, Clock, UnavailableError
from vmpool.agent import new_key
from vmpool.errors import EngineError, VmpoolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.guest import Guest
    from bench.peer import Arena

SNAPSHOT_DISK_BYTES = 8 << 30
"""Of a disk image that holds a guest's snapshot: sparse, and more than its memory."""


async def execute(guest: Guest, command: str, arguments: dict[str, Any] | None = None) -> Any:
    """Have QEMU do something.

    Raises:
        EngineError: It refused, is gone, or did not answer in time.
    """
    try:
        async with asyncio.timeout(START_TIMEOUT):
            return await guest.qmp.execute(command, arguments)
    except (QMPError, TimeoutError) as err:
        raise EngineError(f"{command} failed: {err}") from err


async def migrated(guest: Guest, command: str, path: Path) -> None:
    """Write a guest's whole state to a file by `migrate`, or read it by `migrate-incoming`.

    Raises:
        EngineError: It failed.
    """
    events = [{"capability": "events", "state": True}]
    await execute(guest, "migrate-set-capabilities", {"capabilities": events})
    await _concluded(guest, "MIGRATION", command, {"uri": f"file:{path}"})


async def snapshotted(guest: Guest, command: str, node: str) -> None:
    """Do `snapshot-save` or `snapshot-load` of the whole machine in a disk image.

    Raises:
        EngineError: It failed.
    """
    job = {"job-id": "snapshot", "tag": "bench", "vmstate": node, "devices": [node]}
    await _concluded(guest, "JOB_STATUS_CHANGE", command, job)
    jobs = await execute(guest, "query-jobs")
    failed = [str(one["error"]) for one in jobs if "error" in one]
    await execute(guest, "job-dismiss", {"id": "snapshot"})
    if failed:
        raise EngineError(f"{command} failed: {failed[0]}")


_ENDS = frozenset({"completed", "concluded", "failed"})


async def _concluded(guest: Guest, event: str, command: str, arguments: dict[str, Any]) -> None:
    """Give a command, and return once the event says that what it began has ended."""
    listener = EventListener([event])
    with guest.qmp.listen(listener):
        await execute(guest, command, arguments)
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while (status := _status(await listener.get())) not in _ENDS:
                    pass
        except TimeoutError as err:
            raise EngineError(f"{command} did not end in time") from err
    if status == "failed":
        raise EngineError(f"{command} failed")


def _status(event: Mapping[str, object]) -> object:
    data = event["data"]
    return data["status"] if isinstance(data, dict) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A warm guest of the image, saved in both ways at one moment.

    Attributes:
        key: What its agent obeys.
        stream: What `migrate` wrote.
        disk: Options that give a machine the disk image with the snapshot.
    """

    key: bytes
    stream: Path
    disk: tuple[str, ...]


async def saved(arena: Arena) -> Saved:
    """Boot the image, have it run the line once, and save it; once an arena, which keeps it.

    Raises:
        UnavailableError: There is no qemu-img, it does not come up, or it cannot be saved.
    """
    kept = arena.directory / "saved-key"
    stream, image = arena.directory / "migration", arena.directory / "snapshots.qcow2"
    disk = _disk(image)
    if not kept.exists():
        size = str(SNAPSHOT_DISK_BYTES)
        await checked(["qemu-img", "create", "-q", "-f", "qcow2", str(image), size])
        key = new_key()
        async with running(arena, *booting(arena.subject), *disk) as guest:
            try:
                await first_output(guest.agent, key, Clock())
                await execute(guest, "stop")
                await snapshotted(guest, "snapshot-save", "disk")
                await migrated(guest, "migrate", stream)
            except VmpoolError as err:
                raise UnavailableError(f"no warm guest: {err.message}") from err
        kept.write_bytes(key)
    return Saved(key=kept.read_bytes(), stream=stream, disk=disk)


def _disk(image: Path) -> tuple[str, ...]:
    file = f"driver=file,node-name=disk-file,filename={image}"
    return ("-blockdev", file, "-blockdev", "driver=qcow2,node-name=disk,file=disk-file")
