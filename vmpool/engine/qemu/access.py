"""Access: whether this process may copy the memory of what it starts.

Saving a machine takes it, and the right to is easily lacking where all else works: in a container
whose root has no CAP_SYS_PTRACE. It is found out by doing it, to a process as cut off as a QEMU.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool.delta import PAGE_BYTES
from vmpool.engine.qemu import pagemap, pages
from vmpool.engine.qemu import process as processes
from vmpool.engine.qemu.jail.wall import Wall
from vmpool.engine.qemu.pagemap import Mapping
from vmpool.errors import HostError

if TYPE_CHECKING:
    from vmpool.engine.qemu.isolation import Isolation

_SLEEPER = ("sleep", "60")
_MAPS_LIMIT_BYTES = 64 << 10  # of a program that does nothing but sleep


async def require_access(isolated: Isolation) -> None:
    """Read the memory of a process that runs as QEMU would; it is gone afterwards.

    Raises:
        HostError: That may not be (`memory_unreadable`), or there cannot be such a process.
        EngineError: It could not be started, or ended early.
    """
    log = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        # Within walls of files it could not be started; they do not bear on who may read it.
        with isolated.without(Wall.ROOT, Wall.LANDLOCK).for_one() as jail:
            sleeper = await processes.spawn(_SLEEPER, slots={}, log=log, jail=jail)
    finally:
        os.close(log)
    try:
        await asyncio.to_thread(_read_stack, sleeper.pid)
    finally:
        await sleeper.kill()


def _read_stack(pid: int) -> None:
    """Find the pages of a process's stack, and copy one."""
    try:
        with Path(f"/proc/{pid}/maps").open() as file:
            lines = file.read(_MAPS_LIMIT_BYTES).splitlines()
    except OSError as err:
        raise pagemap.unreadable(pid, err) from err
    for line in lines:
        if line.endswith("[stack]"):
            start, _, end = line.split()[0].partition("-")
            break
    else:
        raise pagemap.unreadable(pid, PermissionError(1, "its mappings are not told"))
    stack = Mapping(start=int(start, 16), end=int(end, 16), offset=0)
    found = pagemap.find_written(pid, (stack,))
    if not found:
        raise HostError(
            "the kernel does not tell which pages a process has written",
            code="memory_unreadable",
            remedy="give the server the capability CAP_SYS_PTRACE",
        )
    buffer = pages.Buffer(PAGE_BYTES)
    try:
        buffer.fill(pid, [(found[0][0], found[0][0] + PAGE_BYTES)])
    finally:
        buffer.close()
