"""Benches: an engine of each kind, what it boots, and places to do so."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests import tiny_guest, watch
from vmpool import snapshot
from vmpool.engine import Engine
from vmpool.engine.qemu import QemuEngine
from vmpool.model import MIB, Accelerator, Attachment, Kernel, MachineSpec, MachineType, Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmpool.engine import Capture, Machine
    from vmpool.snapshot import Snapshot


@dataclass
class Bench:
    """An engine, what it boots, and places to do so."""

    engine: Engine
    spec: MachineSpec
    kernel: Kernel
    directory: Path

    def attachment(self) -> Attachment:
        directory = self.directory / secrets.token_hex(4)
        directory.mkdir(mode=0o700)
        return Attachment(directory=directory)

    async def booted(self) -> Machine:
        at = self.attachment()
        machine = await self.engine.boot(self.spec, self.kernel, at)
        if isinstance(self.engine, QemuEngine):
            await watch.holds(at.directory / "console", tiny_guest.UP)
        return machine

    async def template(self) -> Snapshot:
        machine = await self.booted()
        await machine.pause()
        processor = await machine.processor()
        snapshots = self.directory / "snapshots"
        snapshots.mkdir()
        partial = snapshot.begin(snapshots)
        await machine.save(partial)
        await machine.kill()
        manifest = snapshot.describe(
            partial,
            id="template",
            image="none",
            spec=self.spec,
            processor=processor,
            created_ns=1,
        )
        return snapshot.publish(partial, manifest, snapshots)

    async def restored(self, template: Snapshot, state: Snapshot) -> Machine:
        return await (await self.engine.prepare(template, self.attachment())).load(state)

    async def checkpoint(self, machine: Machine, template: Snapshot, name: str) -> Snapshot:
        return await self._captured(machine, machine.capture, template, name)

    async def disk(self, machine: Machine, template: Snapshot, name: str) -> Snapshot:
        return await self._captured(machine, machine.capture_disk, template, name)

    async def _captured(
        self,
        machine: Machine,
        capturing: Callable[[Path], Capture],
        template: Snapshot,
        name: str,
    ) -> Snapshot:
        snapshots = self.directory / "snapshots"
        partial = snapshot.begin(snapshots)
        async with capturing(partial) as capture:
            await machine.pause()
            await capture.take()
            await machine.resume()
            await capture.write()
        manifest = snapshot.describe(
            partial,
            id=name,
            image="none",
            spec=self.spec,
            processor=template.manifest.processor,
            created_ns=2,
            base=template.as_base,
        )
        return snapshot.publish(partial, manifest, snapshots)


@contextlib.contextmanager
def opened(
    engine: Engine, shape: str, accelerator: Accelerator, transport: Transport, tmp_path: Path
) -> Iterator[Bench]:
    """Yield a bench for machines of a shape: `q35`, `microvm`, or one of these with `-disk`."""
    root = tmp_path / "root"
    root.write_bytes(bytes(4096))
    spec = MachineSpec(
        root=root,
        memory_bytes=32 * MIB,
        accelerator=accelerator,
        transport=transport,
        machine_type=MachineType.MICROVM if shape == "microvm" else MachineType.Q35,
        disk_bytes=8 * MIB if shape.endswith("-disk") else 0,
        qemu_version=engine.version,
    )
    # A short name: a socket's path has at most 107 bytes.
    directory = Path("/tmp") / f"vmpool-{secrets.token_hex(4)}"
    directory.mkdir(mode=0o700)
    yield Bench(engine, spec, tiny_guest.kernel(tmp_path, tiny_guest.IDLE), directory)
    shutil.rmtree(directory)
