"""A template of a tiny guest under QEMU, for what descends from it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests import tiny_guest, watch
from vmpool import snapshot
from vmpool.delta import PAGE_BYTES
from vmpool.engine.qemu import QemuEngine, QemuMachine, pagemap
from vmpool.model import MIB, Accelerator, Attachment, MachineSpec, MachineType, Transport
from vmpool.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


PAGE = PAGE_BYTES
MEMORY_BYTES = 64 * MIB
FREE, FREE_END = 16 * MIB, 56 * MIB
"""Where nothing lies: below is the guest, and above what its firmware talks to devices by."""

SCRATCH = "/machine/peripheral-anon/device[1]/virtio-backend"
"""The scratch disk as its guest has it: the second device, whatever node it writes to."""


class Peek:
    """The guest's memory of a clone, past its hypervisor."""

    def __init__(self, machine: QemuMachine, template: Snapshot) -> None:
        found = pagemap.find_mappings(machine.pid, template.memory, MEMORY_BYTES)
        self._start = found[0].start
        self._path = Path(f"/proc/{machine.pid}/mem")

    def read(self, offset: int, size: int) -> bytes:
        with self._path.open("rb") as memory:
            return os.pread(memory.fileno(), size, self._start + offset)

    def write(self, offset: int, data: bytes) -> None:
        with self._path.open("r+b") as memory:
            assert os.pwrite(memory.fileno(), data, self._start + offset) == len(data)

    @property
    def count(self) -> int:
        return int(struct.unpack("<I", self.read(tiny_guest.COUNT, 4))[0])

    async def counted_beyond(self, count: int) -> None:
        async with asyncio.timeout(30):
            while self.count <= count:  # noqa: ASYNC110 -- another process's memory has no event
                await asyncio.sleep(0.005)


@dataclass
class Bench:
    engine: QemuEngine
    template: Snapshot
    directory: Path

    def place(self) -> Path:
        directory = self.directory / secrets.token_hex(4)
        directory.mkdir(mode=0o700)
        return directory

    async def restored(self, state: Snapshot) -> tuple[QemuMachine, Peek]:
        shell = await self.engine.prepare(self.template, Attachment(directory=self.place()))
        machine = await shell.load(state)
        return machine, Peek(machine, self.template)

    async def captured(self, machine: QemuMachine) -> tuple[Snapshot, int]:
        """Return a checkpoint of a paused machine, and how much memory of its own it had."""
        partial = snapshot.begin(self.directory)
        async with machine.capture(partial) as taken:
            await taken.take()
            await taken.write()
        manifest = snapshot.describe(
            partial,
            id=secrets.token_hex(4),
            image="none",
            spec=self.template.manifest.spec,
            processor=self.template.manifest.processor,
            created_ns=1,
            base=self.template.as_base,
        )
        return snapshot.publish(partial, manifest, self.directory), taken.dirty_bytes


@contextlib.asynccontextmanager
async def opened(
    tmp_path: Path, machine_type: MachineType, *, disk_bytes: int
) -> AsyncIterator[Bench]:
    root = tmp_path / "root"
    root.write_bytes(bytes(4096))
    engine = await QemuEngine.detect()
    spec = MachineSpec(
        root=root,
        memory_bytes=MEMORY_BYTES,
        accelerator=Accelerator.TCG,
        transport=Transport.SERIAL,
        machine_type=machine_type,
        disk_bytes=disk_bytes,
        qemu_version=engine.version,
    )
    directory = Path(f"/tmp/vmpool-{secrets.token_hex(4)}")  # short: a socket's path is limited
    directory.mkdir(mode=0o700)
    at = Attachment(directory=directory / "t")
    at.directory.mkdir()
    kernel = tiny_guest.kernel(tmp_path, tiny_guest.COUNTER)
    machine = await engine.boot(spec, kernel, at)
    await watch.holds(at.directory / "console", tiny_guest.UP)
    await machine.pause()
    processor = await machine.processor()
    partial = snapshot.begin(directory)
    await machine.save(partial)
    await machine.kill()
    manifest = snapshot.describe(
        partial, id="template", image="none", spec=spec, processor=processor, created_ns=1
    )
    yield Bench(engine, snapshot.publish(partial, manifest, directory), directory)
    engine.close()
    shutil.rmtree(directory)


async def woken(bench: Bench, state: Snapshot) -> QemuMachine:
    """Return a machine that has run: until then QEMU leaves its disks to whom they came from."""
    machine, _ = await bench.restored(state)
    await machine.resume()
    await machine.pause()
    return machine


async def on_disk(machine: QemuMachine, line: str) -> None:
    """Read or write a guest's disk as it would itself; what is not as said is found in the log."""
    command = f'qemu-io -d {SCRATCH} "{line}"'
    said = await machine._hypervisor.execute("human-monitor-command", command_line=command)
    assert said == ""
    assert "failed" not in machine._hypervisor._output.tail, line
