"""Pages: memory of another process, copied while it holds still.

The copy goes into memory that was taken before, page by page, so that no page of it has to be found
while a guest waits. It knows addresses, not what lies there.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import mmap
import os
from typing import TYPE_CHECKING

from vmpool.engine.qemu.pagemap import unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vmpool.engine.qemu.pagemap import Span

_IOV_MAX = 1024  # linux/uio.h: UIO_MAXIOV
_MADV_POPULATE_WRITE = 23  # asm-generic/mman-common.h

_LIBRARY = ctypes.CDLL(None, use_errno=True)
_READ = _LIBRARY.process_vm_readv
_READ.restype = ctypes.c_ssize_t
_READ.argtypes = [
    *(ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong),
    *(ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong),
]


class Buffer:
    """Memory to copy pages into, there from the start; whoever makes it calls `close`.

    Args:
        size_bytes: A multiple of the page size, not 0.
    """

    def __init__(self, size_bytes: int) -> None:
        self._memory = _populated(size_bytes)
        self._first: ctypes.c_char | None = ctypes.c_char.from_buffer(self._memory)
        self.size_bytes = size_bytes

    def view(self, size_bytes: int) -> memoryview:
        """Return the first `size_bytes`, to be released before `close`."""
        return memoryview(self._memory)[:size_bytes]

    def fill(self, pid: int, spans: Sequence[Span]) -> int:
        """Copy `spans` of the process `pid` one behind the other; return how many bytes. Blocks.

        Raises:
            EngineError: The process is gone; code `qemu_died`.
            HostError: `memory_unreadable`; this process may not, or nothing is there.
        """
        if self._first is None:
            raise ValueError("closed")
        address = ctypes.addressof(self._first)
        filled = 0
        for first in range(0, len(spans), _IOV_MAX):
            part = spans[first : first + _IOV_MAX]
            size = sum(end - start for start, end in part)
            if filled + size > self.size_bytes:
                raise ValueError(f"{self.size_bytes} bytes are too few")
            local = array.array("Q", (address + filled, size))
            remote = array.array("Q", [n for start, end in part for n in (start, end - start)])
            copied = _READ(
                *(pid, local.buffer_info()[0], 1),
                *(remote.buffer_info()[0], len(part), 0),
            )
            if copied != size:
                number = ctypes.get_errno() if copied < 0 else 14  # EFAULT: cut short
                raise unreadable(pid, OSError(number, os.strerror(number)))
            filled += size
        return filled

    def close(self) -> None:
        """Give the memory back. *Idempotent.*"""
        self._first = None
        self._memory.close()


def _populated(size_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)  # several times as fast to get, and faster to fill
    try:
        memory.madvise(_MADV_POPULATE_WRITE)
    except OSError:  # a kernel before 5.14
        for page in range(0, size_bytes, mmap.PAGESIZE):
            memory[page] = 0
    return memory


def batches(spans: Sequence[Span], limit_bytes: int) -> Iterator[list[Span]]:
    """Yield `spans` in their order, cut into lists of at most `limit_bytes` each.

    Args:
        limit_bytes: A multiple of the page size, not 0.
    """
    batch: list[Span] = []
    room = limit_bytes
    for start, end in spans:
        at = start
        while end - at > room:
            if room:
                batch.append((at, at + room))
                at += room
            yield batch
            batch, room = [], limit_bytes
        batch.append((at, end))
        room -= end - at
    if batch:
        yield batch
