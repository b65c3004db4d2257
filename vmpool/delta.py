"""Delta: the memory in which a machine differs from its template, beside each other and by place.

One file of a checkpoint, or the same in memory for children that are made at once. An index says
where the pages belong, then they follow in that order, from a page's boundary on. It knows no
hypervisor; whoever maps a template's memory can be given what is here.
"""

from __future__ import annotations

import array
import contextlib
import errno
import itertools
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmpool.errors import DiskFullError, SnapshotError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE_BYTES = 4096

_HEADER = struct.Struct("<8sQ")  # what it is, and how many places follow
_MAGIC = b"vmdelta1"
_ZERO_PAGE = bytes(PAGE_BYTES)
_ZERO_WORD = bytes(8)

Span = tuple[int, int]
"""Where pages begin and end in the guest's memory; a plain pair, since they come in thousands."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Where a delta's pages lie in a file, which nobody writes to as long as anyone maps it.

    Attributes:
        file: Descriptor, open for reading; whoever made the delta closes it.
        offset: Of the first page, in bytes.
    """

    file: int
    offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """Pages of a guest, and where they belong.

    Attributes:
        spans: In ascending order, whole pages, none empty and none twice.
        data: What lies there, one behind the other; writable, and nobody's to write.
        extent: The same in a file, for whoever can map it; `None` when it is in none.
    """

    spans: Sequence[Span]
    data: memoryview
    extent: Extent | None = None

    @property
    def size_bytes(self) -> int:
        """How much memory there is."""
        return len(self.data)


class Writer:
    """A delta's file being written; whoever makes it calls `close`. All of it blocks.

    Args:
        path: Must not exist.
        spans: As in `Delta`; what lies there is `append`ed in their order.

    Raises:
        DiskFullError: The disk is full.
        SnapshotError: `snapshot_unsaved`; the file cannot be written.
    """

    def __init__(self, path: Path, spans: Sequence[Span]) -> None:
        self._path = path
        index = array.array("Q", itertools.chain.from_iterable(spans))
        head = _HEADER.pack(_MAGIC, len(spans)) + index.tobytes()
        self._at = _data_offset(len(spans))
        size = self._at + sum(end - start for start, end in spans)
        with self._failing():
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with self._failing():
                os.truncate(self._file, size)
                self._write(memoryview(head), 0)
        except BaseException:
            self.close()
            raise

    def append(self, data: memoryview) -> None:
        """Write the next pages; zeros are left a hole.

        Raises:
            DiskFullError, SnapshotError: As the constructor.
        """
        with self._failing():
            for first, last in runs(data):
                with data[first:last] as run:
                    self._write(run, self._at + first)
        self._at += len(data)

    def close(self) -> None:
        """Give the descriptor back. *Idempotent.*"""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _write(self, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            # Released at once: in the traceback of a failure it would keep the memory.
            with data[done:] as rest:
                done += os.pwrite(self._file, rest, offset + done)

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            if err.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise DiskFullError("no space for the pages of a checkpoint") from err
            raise SnapshotError(
                f"cannot write {self._path.name!r}: {err.strerror}", code="snapshot_unsaved"
            ) from err


@contextlib.contextmanager
def opened(path: Path, memory_bytes: int) -> Iterator[Delta]:
    """Yield the delta in the file at `path`, mapped as long as the block.

    Args:
        memory_bytes: Of the guest; no page lies beyond.

    Raises:
        SnapshotError: It is none, or of another machine; code `snapshot_damaged`.
    """
    with contextlib.ExitStack() as held:
        try:
            file = held.enter_context(path.open("rb", buffering=0)).fileno()
            size = os.fstat(file).st_size
            spans, begin = _read_index(file, size, memory_bytes)
            # Writable, and none of that reaches the file: it is how its address is told.
            mapped = held.enter_context(mmap.mmap(file, size, access=mmap.ACCESS_COPY))
        except OSError as err:
            raise _damaged(err.strerror or "it cannot be read") from err
        whole = held.enter_context(memoryview(mapped))
        data = held.enter_context(whole[begin:])
        yield Delta(spans=spans, data=data, extent=Extent(file=file, offset=begin))


def _read_index(descriptor: int, size: int, memory_bytes: int) -> tuple[list[Span], int]:
    head = os.pread(descriptor, _HEADER.size, 0)
    if len(head) != _HEADER.size or not head.startswith(_MAGIC):
        raise _damaged("it is none")
    count = _HEADER.unpack(head)[1]
    if count > memory_bytes // PAGE_BYTES or _data_offset(count) > size:
        raise _damaged(f"it has {count} places")
    numbers = array.array("Q", os.pread(descriptor, count * 16, _HEADER.size))
    spans = list(zip(numbers[::2], numbers[1::2], strict=True))
    reached = 0
    for start, end in spans:
        if not reached <= start < end or start % PAGE_BYTES or end % PAGE_BYTES:
            raise _damaged("its places are out of order")
        reached = end
    begin = _data_offset(count)
    if reached > memory_bytes or size != begin + sum(end - start for start, end in spans):
        raise _damaged("its places do not fit")
    return spans, begin


def _data_offset(count: int) -> int:
    return -(-(_HEADER.size + 16 * count) // PAGE_BYTES) * PAGE_BYTES


def runs(data: memoryview) -> Iterator[Span]:
    """Yield start and end of every run of pages that are not all zero."""
    start: int | None = None
    for page in range(0, len(data), PAGE_BYTES):
        # Most pages are told by their first bytes, and comparing a page takes ten times as long.
        likely = data[page : page + 8] == _ZERO_WORD
        if likely and _ZERO_PAGE.startswith(data[page : page + PAGE_BYTES]):
            if start is not None:
                yield start, page
                start = None
        elif start is None:
            start = page
    if start is not None:
        yield start, len(data)


def _damaged(what: str) -> SnapshotError:
    return SnapshotError(f"the pages of a checkpoint are damaged: {what}", code="snapshot_damaged")
