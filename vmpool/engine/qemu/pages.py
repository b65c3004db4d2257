"""Pages: memory of other processes, copied out of one that holds still and into ones that wait.

The copy goes into memory that was taken before, page by page, so that no page of it has to be found
while a guest waits. It knows addresses, not what lies there. Its system calls leave the interpreter
to others meanwhile, and large copies are shared between threads.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import itertools
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from vmpool.engine.qemu.pagemap import unreadable

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

    from vmpool.engine.qemu.pagemap import Span

_IOV_MAX = 1024  # linux/uio.h: UIO_MAXIOV
_MADV_POPULATE_WRITE = 23  # asm-generic/mman-common.h
_EFAULT = 14

_THREADS = 2
"""More of them share a memory that two can fill."""

_WORTH_SHARING_BYTES = 4 << 20
_TURN_BYTES = 64 << 20

_LIBRARY = ctypes.CDLL(None, use_errno=True)
_READ, _WRITE = _LIBRARY.process_vm_readv, _LIBRARY.process_vm_writev
for _call in (_READ, _WRITE):
    _call.restype = ctypes.c_ssize_t
    _call.argtypes = [
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong),
        *(ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong),
    ]
_ADVISE = _LIBRARY.madvise
_ADVISE.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Buffer:
    """Memory to copy pages into, there from the start; whoever makes it calls `close`.

    Args:
        size_bytes: A multiple of the page size, not 0.
    """

    def __init__(self, size_bytes: int) -> None:
        self._memory = _populated(size_bytes)
        self.size_bytes = size_bytes

    def view(self, size_bytes: int) -> memoryview:
        """Return the first `size_bytes`, to be released before `close`."""
        with memoryview(self._memory) as whole:
            return whole[:size_bytes]

    def fill(self, pid: int, spans: Sequence[Span]) -> int:
        """Copy `spans` of the process `pid` one behind the other; return how many bytes. Blocks.

        Raises:
            EngineError: The process is gone; code `qemu_died`.
            HostError: `memory_unreadable`; this process may not, or nothing is there.
        """
        size = sum(end - start for start, end in spans)
        if size > self.size_bytes:
            raise ValueError(f"{self.size_bytes} bytes are too few")
        with self.view(size) as target:
            _copy(_READ, pid, spans, target)
        return size

    def close(self) -> None:
        """Give the memory back. *Idempotent.*"""
        self._memory.close()


def put(pid: int, spans: Sequence[Span], data: memoryview, turn: threading.Lock) -> None:
    """Copy `data` to `spans` of the process `pid`. Blocks.

    Args:
        data: Writable, though nothing is written to it: only such memory tells its address.
        turn: Held while a part is copied, and given to others between two.

    Raises:
        EngineError: The process is gone; code `qemu_died`.
        HostError: `memory_unreadable`; this process may not, or nothing is there.
    """
    done = 0
    for part in batches(spans, _TURN_BYTES):
        size = min(_TURN_BYTES, len(data) - done)
        with turn, data[done : done + size] as here:
            _copy(_WRITE, pid, part, here)
        done += size


def _copy(call: Callable[..., int], pid: int, spans: Sequence[Span], local: memoryview) -> None:
    """Copy between the process's `spans` and `local`, which is as long as they are together."""
    if not spans:
        return
    address = _address(local)
    shares = _THREADS if len(local) >= _WORTH_SHARING_BYTES else 1
    share = -(-len(local) // shares // mmap.PAGESIZE) * mmap.PAGESIZE
    parts = list(batches(spans, share))
    begins = [address + number * share for number in range(len(parts))]
    with ThreadPoolExecutor(max_workers=shares, thread_name_prefix="vmpool-pages") as threads:
        here = parts.pop()
        others = [
            threads.submit(_copy_part, call, pid, part, begin)
            for part, begin in zip(parts, begins, strict=False)
        ]
        _copy_part(call, pid, here, begins[-1])
        for other in others:
            other.result()


def _address(memory: memoryview | mmap.mmap) -> int:
    """Return where writable memory lies, which must be kept from being closed meanwhile."""
    # What is asked lives no longer than this: in a traceback it would keep the memory.
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _copy_part(call: Callable[..., int], pid: int, spans: Sequence[Span], address: int) -> None:
    for first in range(0, len(spans), _IOV_MAX):
        part = spans[first : first + _IOV_MAX]
        size = sum(end - start for start, end in part)
        local = array.array("Q", (address, size))
        remote = array.array(
            "Q", itertools.chain.from_iterable((start, end - start) for start, end in part)
        )
        copied = call(
            *(pid, local.buffer_info()[0], 1),
            *(remote.buffer_info()[0], len(part), 0),
        )
        if copied != size:
            number = ctypes.get_errno() if copied < 0 else _EFAULT  # cut short
            raise unreadable(pid, OSError(number, os.strerror(number)))
        address += size


def _populated(size_bytes: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)  # several times as fast to get, and faster to fill
    # Not the module's own, which keeps the interpreter for as long as this takes.
    if _ADVISE(_address(memory), size_bytes, _MADV_POPULATE_WRITE) != 0:  # a kernel before 5.14
        for page in range(0, size_bytes, mmap.PAGESIZE):
            memory[page] = 0
    return memory


def batches(spans: Sequence[Span], limit_bytes: int) -> Iterator[list[Span]]:
    """Yield `spans` in their order, cut into lists of `limit_bytes` each; the last may have less.

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
