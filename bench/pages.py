"""Pages: what a sparse file holds, and what of a file is in the page cache. All of it blocks."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE_BYTES = 4096
_CHUNK_BYTES = 1 << 20
_ZERO = bytes(PAGE_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """Pages of one file.

    Attributes:
        total: All of them, holes too.
        stored: Those that are no holes.
        stored_zero: Those of them that hold nothing but zeros and might be holes.
    """

    total: int
    stored: int
    stored_zero: int

    @property
    def zero_share(self) -> float:
        """Share of the file that reads as zero."""
        return (self.total - self.stored + self.stored_zero) / self.total

    @property
    def stored_zero_share(self) -> float:
        """Share of what is stored that need not be."""
        return self.stored_zero / self.stored if self.stored else 0.0

    def as_data(self) -> dict[str, float]:
        """Return counts and shares."""
        return asdict(self) | {
            "zero_share": self.zero_share,
            "stored_zero_share": self.stored_zero_share,
        }


def survey(path: Path) -> Survey:
    """Read a file, all but its holes, and count its pages. The file is not empty."""
    stored = stored_zero = 0
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        for start, end in _extents(descriptor, size):
            for at in range(start, end, _CHUNK_BYTES):
                chunk = os.pread(descriptor, min(_CHUNK_BYTES, end - at), at)
                found = [chunk[i : i + PAGE_BYTES] for i in range(0, len(chunk), PAGE_BYTES)]
                stored += len(found)
                stored_zero += sum(page == _ZERO[: len(page)] for page in found)
    finally:
        os.close(descriptor)
    return Survey(total=-(-size // PAGE_BYTES), stored=stored, stored_zero=stored_zero)


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of each stretch of a file that is no hole."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            raise
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def allocated_bytes(path: Path) -> int:
    """Return what a file takes on disk."""
    return path.stat().st_blocks * 512  # stat(2): in units of 512 bytes, whatever the file system


def resident_bytes(path: Path) -> int:
    """Return how much of a file is in the page cache, without bringing any of it there."""
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        # Private and writable, for only the address of a writable mapping can be taken.
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapping:
            first = ctypes.c_char.from_buffer(mapping)
            vector = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
            address = ctypes.c_void_p(ctypes.addressof(first))
            failed = libc.mincore(address, ctypes.c_size_t(size), vector)
            del first  # the mapping cannot be closed while it is pointed to
    if failed:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return sum(byte & 1 for byte in vector) * mmap.PAGESIZE
