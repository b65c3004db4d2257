"""Processes of the machine, as the kernel tells of them; for tests that look for some."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_GRACE = 30.0  # seconds; what another process does, it does when it likes
_LISTENING = "00010000"  # __SO_ACCEPTCON in the flags of /proc/net/unix


def descendants(pid: int) -> list[int]:
    """Return the children of a process, theirs, and so on."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):  # gone before, or while it is read
        return []
    return [pid for child in children for pid in (int(child), *descendants(int(child)))]


def naming(path: Path) -> list[int]:
    """Return the processes that have a path, or one below it, as a word of their command line."""
    wanted, found = os.fsencode(path), []
    for name in os.listdir("/proc"):  # noqa: PTH208 - it is asked for each machine that ends
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:  # noqa: PTH123
                line = file.read()
                if wanted in line and any(
                    word == wanted or word.startswith(wanted + b"/") for word in line.split(b"\0")
                ):
                    found.append(int(name))
    return found


def is_listening(path: str) -> bool:
    """Whether a socket of this path is listened on."""
    sockets = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    return any(fields[-1] == path and fields[3] == _LISTENING for fields in sockets)


async def stopped(pid: int) -> None:
    """Return once a process has stopped for the signal that it was sent."""
    async with asyncio.timeout(_GRACE):
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":  # noqa: ASYNC110 - no event tells it
            await asyncio.sleep(0.001)


async def gone(pid: int, *, probe: Callable[[int, int], None] = os.kill) -> None:
    """Return once a process, or with ``os.killpg`` every process of a group, is gone and reaped."""
    async with asyncio.timeout(_GRACE):
        with contextlib.suppress(ProcessLookupError):
            while True:
                probe(pid, 0)
                await asyncio.sleep(0.001)
