"""Layers: the scratch disk of one restored machine, from its template's up to what it writes.

Beneath everything lies the template's disk; on it stand layers that nobody writes any more, and on
top the one overlay that the machine writes. A checkpoint freezes the overlay and puts an empty one
on it: that takes as long as QEMU takes for a command, whatever the overlay holds.

A checkpoint's layers are files of their own. QEMU keeps the descriptor by which it wrote an
overlay, so an overlay is copied once it is frozen; from then on its copy is linked into every
checkpoint that needs it, and goes with the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from vmpool import disk
from vmpool.cancellation import uninterrupted
from vmpool.engine.qemu import sparse
from vmpool.engine.qemu.command import LAYERS_FDSET
from vmpool.engine.qemu.handover import create_file, open_file
from vmpool.errors import EngineError, InfrastructureError
from vmpool.snapshot import layer_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmpool.engine.qemu.hypervisor import Hypervisor

LAYERS_MOST = 16
"""Layers between a template's disk and an overlay; a read may have to look through all of them."""


class Layers:
    """A machine's layers, bottom first, and the overlay on top.

    Args:
        started: The machine's process, with the nodes `golden` and, over it, `scratch`.
        directory: The machine's own; what is frozen stays there until the machine is gone.
        overlay: The file that `scratch` is.
        size_bytes: Of the disk.
    """

    def __init__(
        self, started: Hypervisor, directory: Path, overlay: Path, size_bytes: int
    ) -> None:
        self._hypervisor = started
        self._directory = directory
        self._size_bytes = size_bytes
        self._active = ("scratch", overlay)
        self._spare: tuple[str, Path] | None = None
        self._frozen: list[Path] = []
        self._copied = 0
        self._fdset = LAYERS_FDSET

    async def stack(self, files: Sequence[Path]) -> None:
        """Put a checkpoint's layers under the empty overlay of a machine that waits for its state.

        Raises:
            EngineError: QEMU refused them.
            DiskFullError: They are on another file system, and could not be copied.
        """
        beneath = "golden"
        for number, file in enumerate(files):
            kept = self._directory / layer_name(number)
            await uninterrupted(asyncio.to_thread(_keep, file, kept))
            self._frozen.append(kept)
            beneath = await self._add(f"layer{number}", kept, os.O_RDONLY, beneath)
        self._copied = len(self._frozen)
        if files:
            options = _qcow2("scratch", "scratch-file", beneath)
            await self._hypervisor.execute("blockdev-reopen", options=[options])

    async def prepare(self) -> None:
        """Have an empty overlay ready to go on top. *Idempotent.*

        Raises:
            EngineError: QEMU refused it, or there are too many layers (`disk_layers_full`).
            DiskFullError: The disk is full.
        """
        if self._spare is not None:
            return
        if len(self._frozen) >= LAYERS_MOST:
            raise EngineError(
                f"the disk of this machine has {LAYERS_MOST} layers already",
                code="disk_layers_full",
                remedy="go on in a new sandbox",
            )
        name = f"scratch{len(self._frozen) + 1}"
        path = self._directory / name
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # of an attempt that QEMU refused
        await uninterrupted(asyncio.to_thread(_write_overlay, path, self._size_bytes))
        await self._add(name, path, os.O_RDWR, None)
        self._spare = (name, path)

    async def freeze(self) -> None:
        """Let the paused machine write to the overlay from `prepare` from now on.

        Raises:
            EngineError: QEMU refused it; what it writes to is then unknown.
        """
        assert self._spare is not None
        name, path = self._active
        await self._hypervisor.execute("blockdev-snapshot", node=name, overlay=self._spare[0])
        self._frozen.append(path)
        self._active, self._spare = self._spare, None

    @property
    def frozen(self) -> tuple[Path, ...]:
        """The files of all layers, for `copy`, whatever is frozen after."""
        return tuple(self._frozen)

    def copy(self, frozen: Sequence[Path], directory: Path) -> None:
        """Put the layers `frozen` into `directory`, durably. Blocks.

        Raises:
            EngineError: A layer is not what QEMU makes of an overlay (`disk_layer_unfit`), or
                cannot be read.
            DiskFullError: The disk is full; what was put there is the caller's to remove.
        """
        for number, file in enumerate(frozen):
            target = directory / layer_name(number)
            if number < self._copied:
                _keep(file, target)
                continue
            _copy(file, target, self._size_bytes)
            kept = self._directory / layer_name(number)
            _keep(target, kept)
            self._frozen[number] = kept
            self._copied = number + 1

    async def _add(self, name: str, path: Path, flags: int, beneath: str | None) -> str:
        self._fdset += 1
        descriptor = open_file(path, flags)
        try:
            await self._hypervisor.monitor.add_descriptor(descriptor, self._fdset)
        finally:
            os.close(descriptor)
        readonly = flags == os.O_RDONLY
        await self._hypervisor.execute(
            "blockdev-add",
            **{
                "driver": "file",
                "node-name": f"{name}-file",
                "filename": f"/dev/fdset/{self._fdset}",
                "read-only": readonly,
                "cache": {"no-flush": True},
            },
        )
        options = _qcow2(name, f"{name}-file", beneath)
        await self._hypervisor.execute("blockdev-add", **options, read_only=readonly)
        return name


def _qcow2(name: str, file: str, beneath: str | None) -> dict[str, object]:
    """Return a node's options; its backing is always said, whatever the file says."""
    return {
        "driver": "qcow2",
        "node-name": name,
        "file": file,
        "backing": beneath,
        "cache": {"no-flush": True},
    }


def _write_overlay(path: Path, size_bytes: int) -> None:
    descriptor = create_file(path, os.O_RDWR)
    try:
        disk.write_overlay(descriptor, size_bytes)
    finally:
        os.close(descriptor)


def _keep(file: Path, target: Path) -> None:
    """Make `target` the same immutable file, or a copy where that cannot be."""
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without links
        _copy_sparse(file, target)


def _copy(file: Path, target: Path, size_bytes: int) -> None:
    _copy_sparse(file, target)
    # The copy: a hostile QEMU could write to the overlay again once that was found good.
    with target.open("rb") as copied:
        try:
            disk.require_plain(copied.read(disk.HEADER_BYTES), size_bytes)
        except InfrastructureError as err:
            raise EngineError(err.message, code="disk_layer_unfit") from err


def _copy_sparse(file: Path, target: Path) -> None:
    source = open_file(file, os.O_RDONLY)
    try:
        sparse.copy(source, target)
    finally:
        os.close(source)
