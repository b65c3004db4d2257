"""Sparse: copy a file and leave out what is zero.

A machine's memory is mostly zero pages, some of them holes already and some written and freed.
Copied this way a template's memory file takes the space of what is in use, shares no inode with a
process that might still hold a writable mapping, and may move to another file system.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from vmpool.errors import DiskFullError, EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PAGE_BYTES = 4096
_CHUNK_BYTES = 1 << 20
_ZERO_PAGE = bytes(_PAGE_BYTES)
_ZERO_CHUNK = bytes(_CHUNK_BYTES)


def copy(source: int, target: Path) -> None:
    """Copy what `source` holds to a new file `target`, zero pages as holes. Blocks.

    Args:
        source: Descriptor open for reading; its offset moves.
        target: Must not exist; removed again on failure.

    Raises:
        DiskFullError: The disk is full.
        EngineError: The copy failed.
    """
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, os.fstat(source).st_size)
        for start, end in _data(source):
            for offset in range(start, end, _CHUNK_BYTES):
                chunk = os.pread(source, min(_CHUNK_BYTES, end - offset), offset)
                for first, last in _runs(chunk):
                    _write(descriptor, memoryview(chunk)[first:last], offset + first)
    except OSError as err:
        target.unlink()
        if err.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError(f"no space for {target.name!r} of a snapshot") from err
        raise EngineError(f"cannot write {str(target)!r}: {err.strerror}") from err
    finally:
        os.close(descriptor)


def _data(source: int) -> Iterator[tuple[int, int]]:
    """Yield start and end of every extent that is not a hole."""
    end = 0
    while True:
        try:
            start = os.lseek(source, end, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        end = os.lseek(source, start, os.SEEK_HOLE)
        yield start, end


def _runs(chunk: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and end of every run of pages that are not all zero."""
    if chunk == _ZERO_CHUNK:
        return
    start: int | None = None
    for page in range(0, len(chunk), _PAGE_BYTES):
        zero = _ZERO_PAGE.startswith(chunk[page : page + _PAGE_BYTES])
        if zero and start is not None:
            yield start, page
            start = None
        elif not zero and start is None:
            start = page
    if start is not None:
        yield start, len(chunk)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
