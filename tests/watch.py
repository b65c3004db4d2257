"""Watch: wait for a file to hold something, by inotify(7)."""

from __future__ import annotations

import asyncio
import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_IN_MODIFY = 0x2  # linux/inotify.h


async def holds(path: Path, wanted: bytes, timeout: float = 60.0) -> None:
    """Return once the file at `path`, which exists, contains `wanted`."""
    loop = asyncio.get_running_loop()
    library = ctypes.CDLL(None, use_errno=True)
    descriptor = library.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
    changed = asyncio.Event()

    def drain() -> None:
        os.read(descriptor, 4096)
        changed.set()

    try:
        assert library.inotify_add_watch(descriptor, os.fsencode(path), _IN_MODIFY) > 0
        loop.add_reader(descriptor, drain)
        async with asyncio.timeout(timeout):
            while wanted not in path.read_bytes():
                changed.clear()
                await changed.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
