"""Fusion: what a machine differs in, and what it differs from, made one state that stands alone.

A checkpoint is read over its template's memory and disk. Here both are laid together into files of
their own, as those of a template are: clones map them, and checkpoints are written against them.
The devices need nothing: their stream is loaded over either. All of it blocks.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from vmpool import delta, disk
from vmpool.errors import DiskFullError, SnapshotError
from vmpool.snapshot import DISK, LAYERS, MEMORY, PAGES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from vmpool.delta import Delta
    from vmpool.snapshot import Snapshot

_CHUNK_BYTES = 1 << 20


def fuse(directory: Path, base: Snapshot) -> None:
    """Make the files of a checkpoint those of a template.

    Args:
        directory: With the checkpoint's files, not published yet; on failure the caller's to
            remove.
        base: What they are the difference from.

    Raises:
        DiskFullError: The disk is full.
        SnapshotError: A file is damaged, or could not be written (`snapshot_unsaved`).
    """
    with _failing(directory):
        pages = directory / PAGES
        with delta.opened(pages, base.spec.memory_bytes) as own:
            _fuse_memory(base.memory, own, directory / MEMORY)
        pages.unlink()
        if base.disk is not None:
            layers = sorted(directory.glob(LAYERS))
            _fuse_disk(base.disk, layers, directory / DISK, base.spec.disk_bytes)
            for layer in layers:
                layer.unlink()


def _fuse_memory(base: Path, own: Delta, target: Path) -> None:
    with _opened(base, target) as (source, into):
        size = os.fstat(source).st_size
        os.truncate(into, size)
        at = reached = 0
        for start, end in own.spans:
            _copy(source, into, reached, min(start, size))
            with own.data[at : at + end - start] as pages:
                _write(into, pages, start)
            at, reached = at + end - start, end
        _copy(source, into, reached, size)


def _fuse_disk(base: Path, layers: Sequence[Path], target: Path, size_bytes: int) -> None:
    with _opened(base, target) as (source, into):
        os.truncate(into, size_bytes)
        _copy(source, into, 0, size_bytes)
        for layer in layers:
            with layer.open("rb", buffering=0) as file:
                for place, found in disk.clusters(file.fileno(), size_bytes):
                    # Over what lies beneath, which may be other than zero where this is.
                    length = min(disk.CLUSTER_BYTES, size_bytes - place)
                    os.pwrite(into, _cluster(file.fileno(), found, length), place)


def _cluster(file: int, offset: int | None, length: int) -> bytes:
    """Return what a cluster holds; one at the end of a file may be cut short."""
    held = b"" if offset is None else os.pread(file, length, offset)
    return held.ljust(length, b"\0")


def _copy(source: int, target: int, start: int, end: int) -> None:
    """Copy what lies between two offsets, zero pages as holes."""
    while start < end:
        try:
            start = os.lseek(source, start, os.SEEK_DATA)
        except OSError as err:
            if err.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        until = min(os.lseek(source, start, os.SEEK_HOLE), end)
        while start < until:
            chunk = os.pread(source, min(_CHUNK_BYTES, until - start), start)
            with memoryview(chunk) as held:
                _write(target, held, start)
            start += len(chunk)


def _write(target: int, data: memoryview, offset: int) -> None:
    for first, last in delta.runs(data):
        done = first
        while done < last:
            with data[done:last] as rest:
                done += os.pwrite(target, rest, offset + done)


@contextlib.contextmanager
def _opened(source: Path, target: Path) -> Iterator[tuple[int, int]]:
    with contextlib.ExitStack() as held:
        reading = held.enter_context(source.open("rb", buffering=0)).fileno()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        writing = os.open(target, flags, 0o600)
        held.callback(os.close, writing)
        yield reading, writing


@contextlib.contextmanager
def _failing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as err:
        if err.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError("no space for the snapshot of a template") from err
        raise SnapshotError(
            f"cannot write snapshot {directory.name!r}: {err.strerror}", code="snapshot_unsaved"
        ) from err
