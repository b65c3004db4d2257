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
import logging
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from vmpool.engine.qemu import huge
from vmpool.engine.qemu.pagemap import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vmpool.engine.qemu.pagemap import Span

log = logging.getLogger(__name__)

_IOV_MAX = 1024  # linux/uio.h: UIO_MAXIOV
_MADV_POPULATE_WRITE = 23  # asm-generic/mman-common.h
_EFAULT = 14

_THREADS = 2
"""More of them share a memory that two can fill."""

_WORTH_SHARING_BYTES = 4 << 20

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

    Attributes:
        file: What holds it, open for reading, for others to map; they keep it when it is closed
            here. `None` where only a copy can be had quickly.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.file: int | None = None
        try:
            self._memory, self.file = _populated_file(size_bytes)
        except OSError as err:
            log.debug("no memory to share: %s", err)
            self._memory = _populated(size_bytes)

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
            _copy(_READ, pid, spans, [whole(target)])
        return size

    def close(self) -> None:
        """Give the memory back. *Idempotent.*"""
        self._memory.close()
        if self.file is not None:
            os.close(self.file)
            self.file = None


def put(pid: int, spans: Sequence[Span], here: Sequence[Span]) -> None:
    """Copy our memory to `spans` of the process `pid`. Blocks.

    Args:
        here: Where what belongs there lies with us: one behind the other as `whole`, or for each
            of them as `places`.

    Raises:
        EngineError: The process is gone; code `qemu_died`.
        HostError: `memory_unreadable`; this process may not, or nothing is there.
    """
    _copy(_WRITE, pid, spans, here)


def whole(data: memoryview) -> Span:
    """Return where `data` lies; see `places`."""
    address = _address(data)
    return address, address + len(data)


def places(spans: Sequence[Span], data: memoryview) -> list[Span]:
    """Return where in our memory what belongs to `spans` lies, one behind the other.

    Args:
        data: Writable, though nothing need be written to it: only such memory tells its address.
            To be kept as long as the places are used.
    """
    sizes = (end - start for start, end in spans)
    return list(itertools.pairwise(itertools.accumulate(sizes, initial=_address(data))))


def _copy(call: Callable[..., int], pid: int, spans: Sequence[Span], here: Sequence[Span]) -> None:
    """Copy between the process's `spans` and our own: one, or each as long as its counterpart."""
    size = sum(end - start for start, end in here)
    shares = _THREADS if size >= _WORTH_SHARING_BYTES else 1
    share = max(-(-size // shares // mmap.PAGESIZE), 1) * mmap.PAGESIZE
    parts = list(zip(batches(spans, share), batches(here, share), strict=True))
    with ThreadPoolExecutor(max_workers=shares, thread_name_prefix="vmpool-pages") as threads:
        others = [threads.submit(_copy_part, call, pid, *part) for part in parts[1:]]
        for part in parts[:1]:
            _copy_part(call, pid, *part)
        for other in others:
            other.result()


def _address(memory: memoryview | mmap.mmap) -> int:
    """Return where writable memory lies, which must be kept from being closed meanwhile."""
    # What is asked lives no longer than this: in a traceback it would keep the memory.
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def _copy_part(
    call: Callable[..., int], pid: int, spans: Sequence[Span], here: Sequence[Span]
) -> None:
    done = 0
    for first in range(0, len(spans), _IOV_MAX):
        remote = _vector(spans[first : first + _IOV_MAX])
        size = sum(remote[1::2])
        if len(here) == 1:
            local = array.array("Q", (here[0][0] + done, size))
        else:
            local = _vector(here[first : first + _IOV_MAX])
        copied = call(
            *(pid, local.buffer_info()[0], len(local) // 2),
            *(remote.buffer_info()[0], len(remote) // 2, 0),
        )
        if copied != size:
            number = ctypes.get_errno() if copied < 0 else _EFAULT  # cut short
            raise unreadable(pid, OSError(number, os.strerror(number)))
        done += size


def _vector(spans: Sequence[Span]) -> array.array[int]:
    """Return spans as the kernel takes them: where each begins, and how long it is."""
    return array.array(
        "Q", itertools.chain.from_iterable((start, end - start) for start, end in spans)
    )


def _populated_file(size_bytes: int) -> tuple[mmap.mmap, int]:
    """Return memory that others can map, and a descriptor to read it by.

    Raises:
        OSError: There is none here.
    """
    with contextlib.ExitStack() as held:
        written = huge.create(size_bytes)
        held.callback(os.close, written)
        memory = mmap.mmap(written, size_bytes, flags=mmap.MAP_SHARED)
        held.callback(memory.close)
        if _ADVISE(_address(memory), size_bytes, _MADV_POPULATE_WRITE) != 0:
            raise OSError(ctypes.get_errno(), "its pages cannot be had at once")
        read = os.open(f"/proc/self/fd/{written}", os.O_RDONLY | os.O_CLOEXEC)
        held.pop_all()
        os.close(written)
        return memory, read


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
