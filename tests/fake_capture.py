"""Fake capture: a checkpoint of a machine without a hypervisor; small, and without a meaning."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmpool import delta, disk
from vmpool.errors import EngineError
from vmpool.snapshot import DEVICE_STATE, PAGES, layer_name

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes import FakeMachine, Faults

STATE = b"fake state\n"
"""What a saved device state holds; a state that holds anything else is refused."""


class FakeCapture:
    """A checkpoint of a fake machine: a state like any other."""

    def __init__(
        self,
        machine: FakeMachine,
        directory: Path,
        faults: Faults,
        *,
        files: tuple[str, ...] = (DEVICE_STATE, PAGES, layer_name(0)),
    ) -> None:
        self._machine = machine
        self._directory = directory
        self._files = files
        self._faults = faults
        self._taken = False
        self.dirty_bytes = 0

    async def __aenter__(self) -> FakeCapture:
        await self._machine.capturing.acquire()
        try:
            self._machine.require_alive()
            await asyncio.sleep(0)
        except BaseException:
            self._machine.capturing.release()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._machine.capturing.release()

    async def take(self) -> None:
        self._machine.require_alive()
        if self._faults.take is not None:
            raise self._faults.take
        if not self._machine.paused:
            raise EngineError("only a paused machine can be saved", code="machine_running")
        await asyncio.sleep(0)
        self._taken = True

    async def write(self) -> None:
        assert self._taken
        await asyncio.sleep(0)
        if self._faults.write is not None:
            raise self._faults.write
        if DEVICE_STATE in self._files:
            (self._directory / DEVICE_STATE).write_bytes(STATE)
            delta.Writer(self._directory / PAGES, []).close()
        if self._machine.spec.disk_bytes:
            with (self._directory / layer_name(0)).open("wb") as layer:
                disk.write_overlay(layer.fileno(), self._machine.spec.disk_bytes)

    async def lend(self) -> None:
        await self.write()
