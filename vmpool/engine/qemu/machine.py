"""Machine: a QEMU that waits for a state, and one that holds a guest.

Both are one process; a shell becomes a machine when it has loaded a state.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING

from vmpool.cancellation import uninterrupted
from vmpool.engine.qemu import command, migration, nic, processor, sparse
from vmpool.engine.qemu.capture import QemuCapture
from vmpool.engine.qemu.disk_capture import QemuDiskCapture
from vmpool.engine.qemu.graft import graft
from vmpool.engine.qemu.handover import create_file, open_file
from vmpool.engine.qemu.layers import Layers
from vmpool.errors import (
    ConflictError,
    DiskFullError,
    EngineError,
    InvalidRequestError,
    SnapshotError,
)
from vmpool.model import Nic
from vmpool.snapshot import DEVICE_STATE, DISK, MEMORY

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.engine.qemu.console import Console
    from vmpool.engine.qemu.hypervisor import Hypervisor, StartTimings
    from vmpool.engine.qemu.room import Shared
    from vmpool.errors import InfrastructureError
    from vmpool.model import AgentAddress, MachineSpec, Processor
    from vmpool.snapshot import Snapshot


class QemuShell:
    """A QEMU that waits for a state, as `engine.Shell`.

    Attributes:
        timings: How long its start took; `load` and `resume` are single steps, timed from outside.
    """

    def __init__(
        self,
        started: Hypervisor,
        template: Snapshot,
        directory: Path,
        address: AgentAddress,
        shared: Shared,
    ) -> None:
        self._hypervisor = started
        self._template = template
        self._shared = shared
        self._directory = directory
        self._agent_address = address
        self._layers: Layers | None = None
        if disk_bytes := template.spec.disk_bytes:
            self._layers = Layers(started, directory, disk_bytes)
        self.timings: StartTimings = started.timings

    @property
    def pid(self) -> int:
        """Process id of QEMU, in our namespace."""
        return self._hypervisor.process.pid

    async def load(self, snapshot: Snapshot) -> QemuMachine:
        """Load a state, as `Shell.load`."""
        try:
            snapshot.require_loadable_over(self._template)
            if self._layers is not None:
                await self._layers.stack(snapshot.layers)
            if snapshot.manifest.base is not None:
                # Before the devices: they look into memory as they are loaded.
                await graft(self._hypervisor, self._template, snapshot, self._shared.turn)
            await self._receive(snapshot)
        except BaseException as err:
            await self._hypervisor.kill()
            if isinstance(err, EngineError):
                explained = self._hypervisor.explained(err)
                if explained.error_code == "state_refused":
                    raise _refused(snapshot, explained) from err
                raise explained from err
            raise
        return QemuMachine(
            self._hypervisor,
            self._template.spec,
            self._directory,
            self._agent_address,
            shared=self._shared,
            template=self._template,
            layers=self._layers,
        )

    async def wait(self) -> int:
        """Return the exit code once QEMU has ended."""
        return await self._hypervisor.process.wait()

    async def kill(self) -> None:
        """End QEMU; return when it is reaped. *Idempotent.*"""
        await self._hypervisor.kill()

    async def _receive(self, snapshot: Snapshot) -> None:
        try:
            descriptor = os.open(snapshot.device_state, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as err:
            raise SnapshotError(
                f"cannot open the device state of {snapshot.manifest.id!r}: {err.strerror}",
                code="snapshot_damaged",
            ) from err
        try:
            version = command.parse_version(self._template.spec.qemu_version)
            started = self._hypervisor
            await migration.receive(started.monitor, started.process, descriptor, version)
        finally:
            os.close(descriptor)


class QemuMachine:
    """A QEMU that holds a guest, as `engine.Machine`.

    Args:
        template: What it was restored from, or its checkpoint; `None` when it was booted.
        layers: Of its scratch disk; `None` when it was booted or has none.
    """

    def __init__(
        self,
        started: Hypervisor,
        spec: MachineSpec,
        directory: Path,
        address: AgentAddress,
        *,
        shared: Shared,
        console: Console | None = None,
        template: Snapshot | None = None,
        layers: Layers | None = None,
    ) -> None:
        self._hypervisor = started
        self._spec = spec
        self._directory = directory
        self._agent_address = address
        self._template = template
        self._layers = layers
        self._console = console
        self._shared = shared
        self._capturing = asyncio.Lock()

    @property
    def pid(self) -> int:
        """Process id of QEMU, in our namespace."""
        return self._hypervisor.process.pid

    @property
    def spec(self) -> MachineSpec:
        """What this machine shares with its siblings."""
        return self._spec

    @property
    def agent_address(self) -> AgentAddress:
        """Where the guest agent's byte stream is reached."""
        return self._agent_address

    async def processor(self) -> Processor:
        """Return what the guest's virtual CPUs are."""
        try:
            return await processor.of_guest(self._hypervisor.monitor)
        except EngineError as err:
            raise self._hypervisor.explained(err) from err

    async def pause(self) -> None:
        """Stop the virtual CPUs. *Idempotent.*"""
        await self._hypervisor.execute("stop")

    async def resume(self) -> None:
        """Let the virtual CPUs run. *Idempotent.*"""
        await self._hypervisor.execute("cont")

    async def connect(self, tap: int) -> None:
        """Give the guest a network, as `Machine.connect`."""
        if self._spec.nic is Nic.NONE:
            raise ConflictError(
                "there is no network: the template was made without a network card, and so is all"
                " that descends from it",
                code="nic_missing",
                remedy="ask for none (network mode 'none'), or remove the template and make it"
                " again, with this version",
            )
        try:
            await nic.plug(self._hypervisor.monitor, tap)
        except EngineError as err:
            raise self._hypervisor.explained(err) from err

    async def disconnect(self) -> None:
        """Take the guest's network away, as `Machine.disconnect`."""
        if self._spec.nic is Nic.NONE:
            return
        try:
            await nic.unplug(self._hypervisor.monitor)
        except EngineError as err:
            raise self._hypervisor.explained(err) from err

    async def save(self, directory: Path) -> None:
        """Save a booted machine, as `Machine.save`; QEMU has ended when this returns.

        It ends before its memory is copied, so that nothing writes to what is being saved.
        """
        if (await self._hypervisor.execute("query-status"))["running"]:
            raise EngineError("only a paused machine can be saved", code="machine_running")
        try:
            await self._send(directory / DEVICE_STATE)
            await self._hypervisor.kill()
            # Not cut short: a thread that still writes must not outlive this call.
            await uninterrupted(asyncio.to_thread(self._copy_files, directory))
        except BaseException as err:
            for name in (MEMORY, DEVICE_STATE, DISK):
                (directory / name).unlink(missing_ok=True)
            if isinstance(err, EngineError):
                raise self._hypervisor.explained(err) from err
            raise

    def capture(self, directory: Path) -> QemuCapture:
        """Return what makes a checkpoint of a restored machine, as `Machine.capture`."""
        if self._template is None:
            raise EngineError(
                "a machine that was booted differs from no template", code="machine_booted"
            )
        return QemuCapture(
            self._hypervisor,
            self._template,
            directory,
            layers=self._layers,
            turn=self._capturing,
            room=self._shared.room,
        )

    def capture_disk(self, directory: Path) -> QemuDiskCapture:
        """Return what makes a checkpoint of the disk alone, as `Machine.capture_disk`."""
        if self._layers is None:
            raise InvalidRequestError(
                "there is no disk to keep: the guest has what it writes in its memory",
                code="disk_missing",
                remedy="keep its memory; or make the template with a disk, and the sandbox of that",
            )
        return QemuDiskCapture(
            self._hypervisor, directory, layers=self._layers, turn=self._capturing
        )

    async def wait(self) -> int:
        """Return the exit code once QEMU has ended."""
        return await self._hypervisor.process.wait()

    async def obituary(self) -> InfrastructureError:
        """Wait for the end and return, as an error to raise, what it was: the guest's kernel
        panicked, the guest powered off or rebooted, or QEMU died."""
        cause = await self._hypervisor.obituary()
        if self._template is None and self._hypervisor.process.exit_code == -signal.SIGBUS:
            # A booted machine's memory is a file, and takes its space as the guest writes to it.
            return DiskFullError(
                f"no space left for the guest's memory in {str(self._directory)!r}",
                remedy="free some space there, or set run to a directory that has more",
            )
        return cause

    async def kill(self) -> None:
        """End QEMU; return when it is reaped. *Idempotent.*"""
        try:
            await self._hypervisor.kill()
        finally:
            if self._console is not None:
                self._console.close()

    async def release(self) -> None:
        """Let go of QEMU, which runs on, as `Machine.release`."""
        await self._hypervisor.release()

    async def _send(self, path: Path) -> None:
        descriptor = create_file(path, os.O_WRONLY)
        try:
            await migration.enable(self._hypervisor.monitor)
            await migration.send(self._hypervisor.monitor, self._hypervisor.process, descriptor)
        finally:
            os.close(descriptor)

    def _copy_files(self, directory: Path) -> None:
        for name in (MEMORY, DISK) if self._spec.disk_bytes else (MEMORY,):
            source = open_file(self._directory / name, os.O_RDONLY)
            try:
                sparse.copy(source, directory / name)
            finally:
                os.close(source)


def _refused(snapshot: Snapshot, err: EngineError) -> SnapshotError:
    words = err.log_tail.splitlines()[-1:]
    return SnapshotError(
        f"cannot load snapshot {snapshot.manifest.id!r}: {'; '.join([err.message, *words])}",
        code="snapshot_refused",
        remedy="verify it, or make the template again",
    )
