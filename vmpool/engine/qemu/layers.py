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
import os
from typing import TYPE_CHECKING

from vmpool import disk
from vmpool.cancellation import uninterrupted
from vmpool.engine.qemu import merge, nodes, sparse
from vmpool.engine.qemu.handover import create_file, open_file
from vmpool.errors import EngineError, InfrastructureError
from vmpool.snapshot import layer_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vmpool.engine.qemu.hypervisor import Hypervisor
    from vmpool.engine.qemu.nodes import Node

LAYERS_MOST = 16
"""Layers between a template's disk and an overlay; a read may have to look through all of them, and
so more of them are merged."""

OVERLAY = "overlay"
"""The file that a machine's first overlay is."""


class Layers:
    """A machine's layers, bottom first, and the overlay on top.

    Args:
        started: The machine's process, with the nodes `golden` and, over it, `scratch`.
        directory: The machine's own, with the overlays; what is frozen stays there until the
            machine is gone.
        size_bytes: Of the disk.
    """

    def __init__(self, started: Hypervisor, directory: Path, size_bytes: int) -> None:
        self._hypervisor = started
        self._directory = directory
        self._size_bytes = size_bytes
        self._nodes = nodes.Nodes(started)
        self._active = nodes.first()
        self._spare: Node | None = None
        self._frozen: list[Node] = []
        self._copied = 0

    async def stack(self, files: Sequence[Path]) -> None:
        """Put a checkpoint's layers under the empty overlay of a machine that waits for its state.

        Raises:
            EngineError: QEMU refused them.
            DiskFullError: They are on another file system, and could not be copied.
        """
        beneath = nodes.BOTTOM
        for number, file in enumerate(files):
            kept = self._kept(number)
            await uninterrupted(asyncio.to_thread(_keep, file, kept))
            name = nodes.frozen_layer(number)
            self._frozen.append(await self._nodes.add(name, kept, os.O_RDONLY, beneath))
            beneath = name
        self._copied = len(self._frozen)
        if files:
            options = nodes.qcow2(self._active.name, beneath)
            await self._hypervisor.execute("blockdev-reopen", options=[options])

    async def settle(self) -> None:
        """Find out from QEMU and the directory how things stand, and drop what is half done.

        Raises:
            EngineError: QEMU failed or died, or has another disk (`disk_unknown`).
        """
        await merge.give_up(self._hypervisor)
        found = await self._nodes.settle()
        self._active, self._spare, self._frozen = found.active, None, list(found.frozen)
        await asyncio.to_thread(self._tidy)
        kept = [self._kept(number).exists() for number in range(len(self._frozen))]
        self._copied = kept.index(False) if False in kept else len(kept)

    async def prepare(self) -> None:
        """Have an empty overlay ready to go on top. *Idempotent.*

        Where there are as many layers as may be, they are merged first: that takes as long as it
        takes to copy what they hold.

        Raises:
            EngineError: QEMU refused it, or did not merge (`disk_unmerged`).
            DiskFullError: The disk is full.
        """
        if self._spare is not None:
            return
        if len(self._frozen) >= LAYERS_MOST:
            await self._merge()
        name = self._nodes.next_overlay()
        path = self._directory / name
        path.unlink(missing_ok=True)  # of an attempt that was not seen to its end
        await uninterrupted(asyncio.to_thread(_write_overlay, path, self._size_bytes))
        self._spare = await self._nodes.add(name, path, os.O_RDWR, None)

    async def freeze(self) -> None:
        """Let the paused machine write to the overlay from `prepare` from now on.

        Raises:
            EngineError: QEMU refused it, or is gone.
        """
        assert self._spare is not None
        names = {"node": self._active.name, "overlay": self._spare.name}
        await self._hypervisor.execute("blockdev-snapshot", **names)
        self._frozen.append(self._active)
        self._active, self._spare = self._spare, None

    def _tidy(self) -> None:
        """Remove the files of layers that are no more; kept ones go by their place in the stack."""
        used = {self._written(node) for node in (*self._frozen, self._active)}
        written = {self._directory / OVERLAY, *self._directory.glob(f"{nodes.FIRST}*")}
        for path in written - used:
            path.unlink(missing_ok=True)
        number = len(self._frozen)
        while self._kept(number).exists():
            self._kept(number).unlink()
            number += 1

    @property
    def frozen(self) -> int:
        """How many layers there are, for `copy`, whatever is frozen after."""
        return len(self._frozen)

    def copy(self, count: int, directory: Path) -> None:
        """Put the lowest `count` layers into `directory`. Blocks.

        Raises:
            EngineError: A layer is not what QEMU makes of an overlay (`disk_layer_unfit`), or
                cannot be read.
            DiskFullError: The disk is full; what was put there is the caller's to remove.
        """
        for number in range(count):
            target, kept = directory / layer_name(number), self._kept(number)
            if number < self._copied:
                _keep(kept, target)
                continue
            _copy(self._written(self._frozen[number]), target, self._size_bytes)
            _keep(target, kept)
            self._copied = number + 1

    async def _merge(self) -> None:
        """Have all layers in the overlay, which still is to be frozen."""
        try:
            await merge.run(self._hypervisor, into=self._active.name, above=nodes.BOTTOM)
        finally:
            await uninterrupted(self.settle())

    def _kept(self, number: int) -> Path:
        """Return where the layer of that place in the stack is kept once nothing can write it."""
        return self._directory / layer_name(number)

    def _written(self, node: Node) -> Path:
        """Return the file that QEMU writes, or wrote, as `node`."""
        return self._directory / (OVERLAY if node.name == nodes.FIRST else node.name)


def _write_overlay(path: Path, size_bytes: int) -> None:
    descriptor = create_file(path, os.O_RDWR)
    try:
        disk.write_overlay(descriptor, size_bytes)
    finally:
        os.close(descriptor)


def _keep(file: Path, target: Path) -> None:
    """Make `target` the same immutable file, or a copy where that cannot be; whole or not there."""
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without links
        partial = target.with_name(f".{target.name}")
        partial.unlink(missing_ok=True)
        _copy_sparse(file, partial)
        partial.rename(target)


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
