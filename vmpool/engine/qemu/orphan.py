"""Orphan: a QEMU that a manager left running when it died.

What it is, its directory says: a record of the very process, or, when the manager died before it
could write one, a socket that only the QEMU of this directory can be listening on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmpool.engine.qemu import record
from vmpool.engine.qemu.hypervisor import QMP_SOCKET
from vmpool.engine.qemu.jail import cgroup
from vmpool.engine.qemu.monitor import Monitor, dial
from vmpool.engine.qemu.process import Process
from vmpool.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.engine.qemu.record import Record


async def reap(directory: Path) -> bool:
    """End the QEMU that belongs to `directory`, if it still runs, and nothing else. *Idempotent.*

    Its files are the caller's to remove.

    Returns:
        Whether there was one.

    Raises:
        EngineError: The kernel did not end it in time.
    """
    ended = await _ended(directory)
    group = await asyncio.to_thread(cgroup.of_machine, directory)
    if group is not None:
        await asyncio.to_thread(group.remove)
    return ended


async def _ended(directory: Path) -> bool:
    found = await asyncio.to_thread(record.read, directory)
    if found is None:
        return await _quit(directory)
    process = hold(found)
    if process is None:
        return False
    await process.kill()
    return True


def hold(found: Record) -> Process | None:
    """Return the very process that a record is of; `None` when it is gone."""
    try:
        process = Process.open(found.pid)
    except ProcessLookupError:
        return None
    # Held first, compared then: between the two the number cannot pass to another process.
    if found.is_alive:
        return process
    process.release()
    return None


async def _quit(directory: Path) -> bool:
    """Ask whoever listens on the directory's control socket to end; return when it has."""
    try:
        dial(directory, QMP_SOCKET).close()
    except OSError:
        return False
    monitor = Monitor()
    try:
        await monitor.connect(directory, QMP_SOCKET)
        await monitor.execute("quit")
        await monitor.ended()
    except EngineError as err:
        if err.error_code != "qemu_died":
            raise
    finally:
        await monitor.close()
    return True
