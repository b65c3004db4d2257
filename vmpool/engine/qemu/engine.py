"""Engine: QEMU as an `engine.Engine`.

Starts what boots and what waits for a state. A template's RAM is a file that its machine shares; a
clone's RAM is the same file, mapped privately.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

from vmpool import disk
from vmpool.engine.qemu import (
    adoption,
    command,
    detection,
    hypervisor,
    migration,
    nic,
    probe,
    processor,
)
from vmpool.engine.qemu.command import Slot
from vmpool.engine.qemu.handover import (
    Handover,
    create_file,
    kvm_group,
    listen_console,
    new_memory,
    open_file,
)
from vmpool.engine.qemu.jail.limits import Limits, is_in_memory
from vmpool.engine.qemu.layers import OVERLAY, Layers
from vmpool.engine.qemu.machine import QemuMachine, QemuShell
from vmpool.engine.qemu.room import Shared
from vmpool.errors import EngineError, SnapshotError
from vmpool.model import Accelerator, Nic
from vmpool.snapshot import DISK, MEMORY

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from vmpool.engine.qemu.hypervisor import Hypervisor
    from vmpool.engine.qemu.isolation import Isolation, Jail
    from vmpool.model import Attachment, Kernel, MachineSpec, Processor
    from vmpool.snapshot import Snapshot

BINARY = "qemu-system-x86_64"
CONSOLE = "console"


class QemuEngine:
    """Starts machines under QEMU. Holds no machine: what it starts belongs to the caller."""

    def __init__(self, *, binary: str, version: str, isolation: Isolation) -> None:
        self._binary = binary
        self._version = version
        self._isolation = isolation
        self._shared = Shared()

    @classmethod
    async def detect(cls, *, binary: str = BINARY) -> QemuEngine:
        """Return an engine for the QEMU of this host, isolated as well as this process may.

        Args:
            binary: Found on PATH.

        Raises:
            HostError: QEMU is missing (`qemu_missing`) or too old (`qemu_too_old`), or there is
                nobody to run it as (`account_unfit`).
        """
        version = await probe.query_version(binary)
        isolated = await asyncio.to_thread(detection.detect, binary, version)
        isolated = await asyncio.to_thread(detection.limited, isolated)
        return cls(binary=binary, version=version, isolation=isolated)

    @property
    def version(self) -> str:
        """QEMU's version."""
        return self._version

    @property
    def isolation(self) -> Isolation:
        """What every QEMU is cut off from."""
        return self._isolation

    def behind(self, isolation: Isolation) -> QemuEngine:
        """Return an engine that is like this one, but for what its QEMUs are started with."""
        return QemuEngine(binary=self._binary, version=self._version, isolation=isolation)

    def close(self) -> None:
        """Give back what is kept to start QEMUs with, as `Engine.close`."""
        self._isolation.close()

    def shape(self, spec: MachineSpec) -> str:
        """Return a digest of the command line's options that a state depends on."""
        return command.shape(spec)

    async def processor(self, spec: MachineSpec, at: Attachment) -> Processor:
        """Return what this host can make virtual CPUs, as `Engine.processor`."""
        with Handover(spec, at) as handover, self._jailed(spec, at) as jail:
            argv = command.bare(spec, handover.instance)
            started = await self._start(argv, handover, jail)
        try:
            return await processor.offered(started.monitor, spec)
        except EngineError as err:
            raise started.explained(err) from err
        finally:
            await started.kill()

    async def boot(self, spec: MachineSpec, kernel: Kernel, at: Attachment) -> QemuMachine:
        """Boot a machine, as `Engine.boot`.

        Args:
            kernel: Files that every account may read, whatever directory they are in.

        Raises:
            InvalidRequestError: No file here can be as large as its memory or disk; code
                `machine_too_large`.
        """
        self._require_version(spec)
        memory, scratch = at.directory / MEMORY, at.directory / DISK
        if spec.disk_bytes:
            await disk.create_scratch(scratch, spec.disk_bytes)
        with contextlib.ExitStack() as given, contextlib.ExitStack() as undo:
            handover = given.enter_context(Handover(spec, at))
            jail = given.enter_context(self._jailed(spec, at))
            handover.put(Slot.MEMORY, new_memory(memory, spec.memory_bytes, jail))
            _put_kernel(handover, kernel)
            console = listen_console(at.directory / CONSOLE)
            undo.callback(console.close)
            handover.put(Slot.CONSOLE, console.writer)
            if spec.disk_bytes:
                handover.put(Slot.DISK, open_file(scratch, os.O_RDWR))
            argv = command.boot(spec, handover.instance, kernel.command_line)
            started = await self._start(argv, handover, jail)
            undo.pop_all()
        machine = QemuMachine(
            started,
            spec,
            at.directory,
            handover.agent_address,
            shared=self._shared,
            console=console,
        )
        await _without_carrier(machine, started)
        return machine

    async def prepare(self, template: Snapshot, at: Attachment) -> QemuShell:
        """Start a waiting hypervisor, as `Engine.prepare`."""
        spec = template.spec
        self._require_version(spec)
        _require_shape(template)
        with Handover(spec, at) as handover, self._jailed(spec, at) as jail:
            _put_template(handover, template)
            argv = command.restore(spec, handover.instance)
            started = await self._start(argv, handover, jail)
        try:
            await migration.enable(started.monitor)
        except BaseException as err:
            await started.kill()
            if isinstance(err, EngineError):
                raise started.explained(err) from err
            raise
        return QemuShell(started, template, at.directory, handover.agent_address, self._shared)

    async def reboot(
        self, template: Snapshot, state: Snapshot, kernel: Kernel, at: Attachment
    ) -> QemuMachine:
        """Boot a template's image on the disk of a checkpoint, as `Engine.reboot`."""
        spec = template.spec
        self._require_version(spec)
        _require_shape(template)
        state.require_of(template)
        with Handover(spec, at) as handover, self._jailed(spec, at) as jail:
            _put_template(handover, template)
            _put_kernel(handover, kernel)
            argv = command.reboot(spec, handover.instance, kernel.command_line)
            started = await self._start(argv, handover, jail)
        layers = Layers(started, at.directory, spec.disk_bytes) if spec.disk_bytes else None
        machine = QemuMachine(
            started,
            spec,
            at.directory,
            handover.agent_address,
            shared=self._shared,
            template=template,
            layers=layers,
        )
        try:
            await migration.enable(started.monitor)  # as in each that waits for a state
            if layers is not None:
                await layers.stack(state.layers)
            await _without_carrier(machine, started)
            await machine.resume()
        except BaseException as err:
            await machine.kill()
            if isinstance(err, EngineError):
                raise started.explained(err) from err
            raise
        return machine

    async def adopt(self, template: Snapshot, at: Attachment) -> QemuMachine:
        """Take over a machine whose manager is gone, as `Engine.adopt`."""
        return await adoption.adopt(self._binary, template, at, self._shared)

    def _jailed(self, spec: MachineSpec, at: Attachment) -> AbstractContextManager[Jail]:
        opens_kvm = spec.accelerator is Accelerator.KVM and not command.takes_kvm_descriptor(spec)
        in_memory = spec.disk_bytes if is_in_memory(at.directory) else 0
        most = Limits.of(spec, disk_in_memory_bytes=in_memory)
        return self._isolation.for_one(most, *((kvm_group(),) if opens_kvm else ()))

    async def _start(self, argv: list[str], handover: Handover, jail: Jail) -> Hypervisor:
        return await hypervisor.start(
            (self._binary, *argv),
            slots=handover.slots,
            directory=handover.directory,
            jail=jail,
            spec=handover.spec,
            cid=handover.instance.cid,
        )

    def _require_version(self, spec: MachineSpec) -> None:
        if spec.qemu_version != self._version:
            raise EngineError(
                f"the machine is for QEMU {spec.qemu_version!r}, this is {self._version!r}",
                code="qemu_version_differs",
            )


def _put_template(handover: Handover, template: Snapshot) -> None:
    """Hand over what a machine maps and reads of its template, with an empty overlay on top.

    Raises:
        DiskFullError: The disk is full.
        EngineError: A file cannot be opened or created.
    """
    handover.put(Slot.MEMORY, open_file(template.memory, os.O_RDONLY))
    if template.disk is not None:
        overlay = create_file(handover.directory / OVERLAY, os.O_RDWR)
        handover.put(Slot.OVERLAY, overlay)
        handover.put(Slot.DISK, open_file(template.disk, os.O_RDONLY))
        disk.write_overlay(overlay, template.spec.disk_bytes)


def _put_kernel(handover: Handover, kernel: Kernel) -> None:
    handover.put(Slot.KERNEL, open_file(kernel.kernel, os.O_RDONLY))
    handover.put(Slot.INITRD, open_file(kernel.initrd, os.O_RDONLY))


def _require_shape(template: Snapshot) -> None:
    if template.spec.shape not in {"", command.shape(template.spec)}:
        raise SnapshotError(
            f"snapshot {template.manifest.id!r} is of a machine that this vmpool makes otherwise",
            code="snapshot_unfit",
            remedy="make the template again",
        )


async def _without_carrier(machine: QemuMachine, started: Hypervisor) -> None:
    """Have a guest boot that is connected to nothing and knows it; on failure it is gone."""
    if machine.spec.nic is Nic.NONE:
        return
    try:
        await nic.pull_down(started.monitor)
    except BaseException as err:
        await machine.kill()
        if isinstance(err, EngineError):
            raise started.explained(err) from err
        raise
