"""Capture: what a machine differs in from its template, on its way into a checkpoint.

While the machine holds still, its devices are saved and its own pages copied into memory that was
taken before. The machine may run again as soon as `take` returns. The devices become a migration
stream, which any shell of the template loads; the pages are written beside it, or lent to children
that are made while they are held.

What QEMU says of itself may be a hostile guest's word: of its devices no more is read than a limit,
and of its memory what the guest's addresses cover once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from vmpool import delta
from vmpool.cancellation import uninterrupted
from vmpool.delta import Delta
from vmpool.engine.qemu import migration, pagemap, pages, stream
from vmpool.errors import DiskFullError, EngineError, SnapshotError
from vmpool.snapshot import DEVICE_STATE, PAGES, layer_name

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmpool.engine.qemu.hypervisor import Hypervisor
    from vmpool.engine.qemu.layers import Layers
    from vmpool.engine.qemu.pagemap import Mapping, Span
    from vmpool.engine.qemu.room import Room
    from vmpool.engine.qemu.stream import Opening
    from vmpool.snapshot import Snapshot

BUFFER_LIMIT_BYTES = 256 << 20
"""What is copied while the machine holds still. A machine with more pages of its own holds still
while what does not fit is written, so that it costs time and not the server's memory."""

DEVICES_LIMIT_BYTES = 64 << 20
"""What is read of what QEMU says of its devices; it says a few hundred kilobytes."""

_STREAM_LIMIT_BYTES = 64 << 20  # a template's stream: its devices and ROMs
_RESERVE_BYTES = 1 << 20
_RESERVE_FRACTION = 8  # of what is found, again, for what the machine writes until it is paused


class QemuCapture:
    """A capture of one machine, as `engine.Capture`.

    Args:
        started: The machine's process.
        base: The template that it was restored from, or that its checkpoint is written against.
        layers: Of its scratch disk; `None` when it has none.
        directory: Where all is written; ours to clean up until it is whole.
        turn: Held by one capture of the machine at a time.
        room: What the pages are copied to takes some of it.
    """

    def __init__(
        self,
        started: Hypervisor,
        base: Snapshot,
        directory: Path,
        *,
        layers: Layers | None,
        turn: asyncio.Lock,
        room: Room,
    ) -> None:
        self._hypervisor = started
        self._base = base
        self._directory = directory
        self._layers = layers
        self._turn = turn
        self._room = room
        self._taken = contextlib.AsyncExitStack()
        self._buffer_bytes = 0
        self._frozen = 0
        self._held = contextlib.ExitStack()
        # Its own: the loop's may be all at work, and a machine that is paused cannot wait for them.
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="vmpool-capture")
        self._whole = False
        self._devices = b""
        self._spans: list[Span] = []
        self._pending_bytes = 0
        self._writer: delta.Writer | None = None
        self.dirty_bytes = 0
        self._mappings: tuple[Mapping, ...]
        self._opening: Opening
        self._buffer: pages.Buffer
        self._memory: int
        self._sink: int

    async def __aenter__(self) -> QemuCapture:
        """Find how much there is to copy and take memory for it; the machine may run."""
        await self._turn.acquire()
        try:
            await self._in_thread(self._count)
            await self._taken.enter_async_context(self._room.taken(self._buffer_bytes))
            await self._in_thread(self._prepare)
            if self._layers is not None:
                await self._layers.prepare()
            await migration.offer(self._hypervisor.monitor, self._sink)
        except BaseException as err:
            self._held.close()
            self._worker.shutdown()
            await self._taken.aclose()
            self._turn.release()
            if isinstance(err, EngineError):
                raise self._hypervisor.explained(err) from err
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._in_thread(self._held.close)
        finally:
            self._worker.shutdown()
            await self._taken.aclose()
            self._turn.release()

    async def take(self) -> None:
        """Copy what differs, as `engine.Capture.take`."""
        started = self._hypervisor
        try:
            await migration.save_devices(started.monitor)
            if self._layers is not None:
                # Not cut short: whether the disk is frozen must be known.
                await uninterrupted(self._layers.freeze())
                self._frozen = self._layers.frozen
            await self._in_thread(self._copy)
        except EngineError as err:
            raise started.explained(err) from err
        if not started.process.is_alive:  # and its number perhaps another's, whom we read
            raise started.explained(EngineError("QEMU ended meanwhile", code="qemu_died"))

    async def write(self) -> None:
        """Write all of it, as `engine.Capture.write`."""
        await self._in_thread(self._write_all)

    async def lend(self) -> Delta | None:
        """Write all but the pages and lend them, as `engine.Capture.lend`."""
        if self._writer is not None:  # they were too many
            await self.write()
            return None
        await self._in_thread(self._write_rest)
        lent = self._buffer.view(self._pending_bytes)
        self._held.callback(lent.release)
        file = self._buffer.file
        return Delta(
            spans=pagemap.to_memory(self._spans, self._mappings),
            data=lent,
            extent=None if file is None else delta.Extent(file=file, offset=0),
        )

    async def _in_thread(self, step: Callable[[], None]) -> None:
        # Not cut short: what the thread works on must not be given back meanwhile.
        loop = asyncio.get_running_loop()
        await uninterrupted(loop.run_in_executor(self._worker, step))

    def _count(self) -> None:
        size = self._base.spec.memory_bytes
        pid = self._hypervisor.process.pid
        self._opening = stream.parse_opening(_read_stream(self._base.device_state), size)
        self._mappings = pagemap.find_mappings(pid, self._base.memory, size)
        found = _size(pagemap.find_written(pid, self._mappings))
        self._buffer_bytes = _buffer_bytes(found, size)

    def _prepare(self) -> None:
        with contextlib.ExitStack() as undo:
            self._buffer = pages.Buffer(self._buffer_bytes)
            undo.callback(self._buffer.close)
            self._memory, self._sink = _devices_memory()
            undo.callback(os.close, self._memory)
            undo.callback(os.close, self._sink)
            undo.callback(self._abandon)
            self._held = undo.pop_all()

    def _copy(self) -> None:
        size = min(os.fstat(self._memory).st_size, DEVICES_LIMIT_BYTES)
        self._devices = stream.compose_devices(os.pread(self._memory, size, 0))
        pid = self._hypervisor.process.pid
        self._spans = pagemap.find_written(pid, self._mappings)
        self.dirty_bytes = _size(self._spans)
        for batch in pages.batches(self._spans, self._buffer.size_bytes):
            if self._pending_bytes:
                self._write_pages()
            self._pending_bytes = self._buffer.fill(pid, batch)

    def _write_all(self) -> None:
        self._write_pages()
        self._write_rest()

    def _write_pages(self) -> None:
        """Write what the buffer holds."""
        if self._writer is None:
            places = pagemap.to_memory(self._spans, self._mappings)
            self._writer = delta.Writer(self._directory / PAGES, places)
            self._held.callback(self._writer.close)
        with self._buffer.view(self._pending_bytes) as pending:
            self._writer.append(pending)
        self._pending_bytes = 0

    def _write_rest(self) -> None:
        path = self._directory / DEVICE_STATE
        try:
            path.write_bytes(self._opening.head + self._opening.footer + self._devices)
        except OSError as err:
            raise _unwritten(path, err) from err
        if self._layers is not None:
            self._layers.copy(self._frozen, self._directory)
        self._whole = True

    def _abandon(self) -> None:
        if not self._whole:
            layers = (layer_name(number) for number in range(self._frozen))
            for name in (DEVICE_STATE, PAGES, *layers):
                (self._directory / name).unlink(missing_ok=True)


def _size(spans: list[Span]) -> int:
    return sum(end - start for start, end in spans)


def _buffer_bytes(found: int, memory_bytes: int) -> int:
    reserve = found // _RESERVE_FRACTION // delta.PAGE_BYTES * delta.PAGE_BYTES
    return min(found + reserve + _RESERVE_BYTES, memory_bytes, BUFFER_LIMIT_BYTES)


def _read_stream(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_STREAM_LIMIT_BYTES)
    except OSError as err:
        raise SnapshotError(
            f"cannot read the template's device state: {err.strerror}", code="snapshot_damaged"
        ) from err


def _devices_memory() -> tuple[int, int]:
    """Return a file in memory: a descriptor to read it by, and one that only writes.

    QEMU takes for writing only what was opened for nothing else. It truncates the file, so that no
    seal can bound it; a hostile one could take as much memory without it.
    """
    reading = os.memfd_create("devices", os.MFD_CLOEXEC)
    try:
        return reading, os.open(f"/proc/self/fd/{reading}", os.O_WRONLY | os.O_CLOEXEC)
    except BaseException:
        os.close(reading)
        raise


def _unwritten(path: Path, err: OSError) -> DiskFullError | SnapshotError:
    if err.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFullError("no space for the devices of a checkpoint")
    return SnapshotError(f"cannot write {path.name!r}: {err.strerror}", code="snapshot_unsaved")
