"""Disk capture: the scratch disk of a machine alone, on its way into a checkpoint without memory.

The overlay is frozen as for any checkpoint, and the layers are copied; pages and devices stay where
they are. Whether what is on the disk is whole is for the guest to see to, before it is stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from vmpool.cancellation import uninterrupted
from vmpool.errors import EngineError
from vmpool.snapshot import layer_name

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.engine.qemu.hypervisor import Hypervisor
    from vmpool.engine.qemu.layers import Layers


class QemuDiskCapture:
    """A capture of one machine's disk, as `engine.Capture`.

    Args:
        started: The machine's process.
        layers: Of its scratch disk.
        directory: Where they are written; ours to clean up until they are whole.
        turn: Held by one capture of the machine at a time.

    Attributes:
        dirty_bytes: Of memory, which is none.
    """

    def __init__(
        self, started: Hypervisor, directory: Path, *, layers: Layers, turn: asyncio.Lock
    ) -> None:
        self._hypervisor = started
        self._directory = directory
        self._layers = layers
        self._turn = turn
        self._frozen = 0
        self._whole = False
        self.dirty_bytes = 0

    async def __aenter__(self) -> QemuDiskCapture:
        """Have an empty overlay ready; the machine may run."""
        await self._turn.acquire()
        try:
            await self._layers.prepare()
        except BaseException:
            self._turn.release()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            if not self._whole:
                await uninterrupted(asyncio.to_thread(self._abandon))
        finally:
            self._turn.release()

    async def take(self) -> None:
        """Freeze what the paused machine wrote, as `engine.Capture.take`."""
        if (await self._hypervisor.execute("query-status"))["running"]:
            raise EngineError("only a paused machine can be saved", code="machine_running")
        # Not cut short: whether the disk is frozen must be known.
        await uninterrupted(self._layers.freeze())
        self._frozen = self._layers.frozen

    async def write(self) -> None:
        """Write the layers, as `engine.Capture.write`."""
        # Not cut short: a thread that still writes must not outlive this call.
        await uninterrupted(asyncio.to_thread(self._layers.copy, self._frozen, self._directory))
        self._whole = True

    async def lend(self) -> None:
        """Write the layers; of memory there is nothing to lend."""
        await self.write()

    def _abandon(self) -> None:
        for number in range(self._frozen):
            with contextlib.suppress(FileNotFoundError):
                (self._directory / layer_name(number)).unlink()
