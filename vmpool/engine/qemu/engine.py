"""Engine: QEMU as an `engine.Engine`.

Opens what a machine needs, hands it over as descriptors, and keeps the directories closed. A
template's RAM is a file that its machine shares; a clone's RAM is the same file, mapped privately.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool import disk
from vmpool.cancellation import uninterrupted
from vmpool.engine.qemu import (
    command,
    hypervisor,
    isolation,
    migration,
    probe,
    processor,
    sparse,
    vsock,
)
from vmpool.engine.qemu.capture import QemuCapture
from vmpool.engine.qemu.command import Instance, Slot
from vmpool.engine.qemu.console import Console
from vmpool.engine.qemu.monitor import listen
from vmpool.errors import (
    DiskFullError,
    EngineError,
    HostError,
    InvalidRequestError,
    SnapshotError,
)
from vmpool.model import Accelerator, SerialAddress, Transport, VsockAddress
from vmpool.snapshot import DEVICE_STATE, DISK, MEMORY

if TYPE_CHECKING:
    from vmpool.engine.qemu.hypervisor import Hypervisor, StartTimings
    from vmpool.engine.qemu.isolation import Isolation
    from vmpool.errors import InfrastructureError
    from vmpool.model import AgentAddress, Attachment, Kernel, MachineSpec, Processor
    from vmpool.snapshot import Snapshot

BINARY = "qemu-system-x86_64"
AGENT_SOCKET = "agent"
CONSOLE = "console"
OVERLAY = "overlay"

_KVM = "/dev/kvm"
_SOCKET_PATH_LIMIT_BYTES = 107  # unix(7): sun_path without its final zero


class QemuEngine:
    """Starts machines under QEMU. Holds nothing: what it starts belongs to the caller."""

    def __init__(self, *, binary: str, version: str, isolation: Isolation) -> None:
        self._binary = binary
        self._version = version
        self._isolation = isolation

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
        isolated = await asyncio.to_thread(isolation.detect)
        return cls(binary=binary, version=version, isolation=isolated)

    @property
    def version(self) -> str:
        """QEMU's version."""
        return self._version

    @property
    def isolation(self) -> Isolation:
        """What every QEMU is cut off from."""
        return self._isolation

    async def processor(self, spec: MachineSpec, at: Attachment) -> Processor:
        """Return what this host can make virtual CPUs, as `Engine.processor`."""
        with _Handover(spec, at) as handover:
            argv = command.bare(spec, handover.instance)
            started = await self._start(argv, handover, self._isolated(spec))
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
        isolated = self._isolated(spec)
        if spec.disk_bytes:
            await disk.create_scratch(scratch, spec.disk_bytes)
        with _Handover(spec, at) as handover, contextlib.ExitStack() as undo:
            handover.put(Slot.MEMORY, _new_memory(memory, spec.memory_bytes, isolated))
            handover.put(Slot.KERNEL, _open(kernel.kernel, os.O_RDONLY))
            handover.put(Slot.INITRD, _open(kernel.initrd, os.O_RDONLY))
            console = _listen(at.directory / CONSOLE)
            undo.callback(console.close)
            handover.put(Slot.CONSOLE, console.writer)
            if spec.disk_bytes:
                handover.put(Slot.DISK, _open(scratch, os.O_RDWR))
            argv = command.boot(spec, handover.instance, kernel.command_line)
            started = await self._start(argv, handover, isolated)
            undo.pop_all()
        return QemuMachine(started, spec, at.directory, handover.agent_address, console=console)

    async def prepare(self, template: Snapshot, at: Attachment) -> QemuShell:
        """Start a waiting hypervisor, as `Engine.prepare`."""
        spec = template.spec
        self._require_version(spec)
        with _Handover(spec, at) as handover:
            handover.put(Slot.MEMORY, _open(template.memory, os.O_RDONLY))
            if template.disk is not None:
                overlay = _create(at.directory / OVERLAY, os.O_RDWR)
                handover.put(Slot.OVERLAY, overlay)
                handover.put(Slot.DISK, _open(template.disk, os.O_RDONLY))
                disk.write_overlay(overlay, spec.disk_bytes)
            argv = command.restore(spec, handover.instance)
            started = await self._start(argv, handover, self._isolated(spec))
        try:
            await migration.enable(started.monitor)
        except BaseException as err:
            await started.kill()
            if isinstance(err, EngineError):
                raise started.explained(err) from err
            raise
        return QemuShell(started, template, at.directory, handover.agent_address)

    def _isolated(self, spec: MachineSpec) -> Isolation:
        if spec.accelerator is Accelerator.TCG or command.takes_kvm_descriptor(spec):
            return self._isolation.for_one()
        return self._isolation.for_one(_kvm_group())

    async def _start(self, argv: list[str], handover: _Handover, isolated: Isolation) -> Hypervisor:
        return await hypervisor.start(
            (self._binary, *argv),
            slots=handover.slots,
            directory=handover.directory,
            isolation=isolated,
            spec=handover.spec,
            cid=handover.instance.cid,
        )

    def _require_version(self, spec: MachineSpec) -> None:
        if spec.qemu_version != self._version:
            raise EngineError(
                f"the machine is for QEMU {spec.qemu_version!r}, this is {self._version!r}",
                code="qemu_version_differs",
            )


class QemuShell:
    """A QEMU that waits for a state, as `engine.Shell`.

    Attributes:
        timings: How long its start took; `load` and `resume` are single steps, timed from outside.
    """

    def __init__(
        self, started: Hypervisor, template: Snapshot, directory: Path, address: AgentAddress
    ) -> None:
        self._hypervisor = started
        self._template = template
        self._directory = directory
        self._agent_address = address
        self.timings: StartTimings = started.timings

    @property
    def pid(self) -> int:
        """Process id of QEMU, in our namespace."""
        return self._hypervisor.process.pid

    async def load(self, snapshot: Snapshot) -> QemuMachine:
        """Load a state, as `Shell.load`."""
        try:
            snapshot.require_loadable_over(self._template)
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
            template=self._template,
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
    """

    def __init__(
        self,
        started: Hypervisor,
        spec: MachineSpec,
        directory: Path,
        address: AgentAddress,
        *,
        console: Console | None = None,
        template: Snapshot | None = None,
    ) -> None:
        self._hypervisor = started
        self._spec = spec
        self._directory = directory
        self._agent_address = address
        self._template = template
        self._console = console

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
        if self._spec.disk_bytes:
            raise EngineError(
                "the scratch disk of a running machine cannot be saved", code="disk_uncaptured"
            )
        return QemuCapture(self._hypervisor, self._template, directory)

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

    async def _send(self, path: Path) -> None:
        descriptor = _create(path, os.O_WRONLY)
        try:
            await migration.enable(self._hypervisor.monitor)
            await migration.send(self._hypervisor.monitor, self._hypervisor.process, descriptor)
            await asyncio.to_thread(os.fsync, descriptor)
        except OSError as err:
            raise DiskFullError("no space for the device state of a snapshot") from err
        finally:
            os.close(descriptor)

    def _copy_files(self, directory: Path) -> None:
        for name in (MEMORY, DISK) if self._spec.disk_bytes else (MEMORY,):
            source = _open(self._directory / name, os.O_RDONLY)
            try:
                sparse.copy(source, directory / name)
            finally:
                os.close(source)


class _Handover:
    """The descriptors that one QEMU is started with; ours are closed at the end."""

    def __init__(self, spec: MachineSpec, at: Attachment) -> None:
        self.spec = spec
        self.directory = at.directory
        self.slots: dict[int, int] = {}
        self.agent_address: AgentAddress
        self.instance: Instance
        self._wanted_cid = at.cid
        self._held = contextlib.ExitStack()

    def __enter__(self) -> _Handover:
        with self._held:
            self._fill()
            self._held = self._held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def put(self, slot: Slot, descriptor: int) -> None:
        """Hand over `descriptor` as `slot`; it is closed here at the end."""
        self._held.callback(os.close, descriptor)
        self.slots[slot] = descriptor

    def _fill(self) -> None:
        cid = None
        self._put_socket(Slot.QMP, hypervisor.QMP_SOCKET)
        self.put(Slot.ROOT, _open(self.spec.root, os.O_RDONLY))
        self.put(Slot.CEILING, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        if command.takes_kvm_descriptor(self.spec):
            self.put(Slot.KVM, _open_kvm())
        match self.spec.transport:
            case Transport.SERIAL:
                self.agent_address = SerialAddress(path=self.directory / AGENT_SOCKET)
                _require_short(self.agent_address.path)
                self._put_socket(Slot.AGENT, AGENT_SOCKET)
            case Transport.VSOCK:
                claim = vsock.claim(self._wanted_cid)
                self.put(Slot.VHOST, claim.descriptor)
                self.agent_address = VsockAddress(cid=claim.cid)
                cid = claim.cid
        self.instance = Instance(name=self.directory.name, cid=cid)

    def _put_socket(self, slot: Slot, name: str) -> None:
        self.put(slot, listen(self.directory, name).detach())


def _open(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as err:
        raise EngineError(f"cannot open {str(path)!r}: {err.strerror}") from err


def _create(path: Path, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise _not_created(path, err) from err


def _not_created(path: Path, err: OSError) -> DiskFullError | EngineError:
    if err.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFullError(f"no space for {str(path)!r}")
    return EngineError(f"cannot create {str(path)!r}: {err.strerror}")


def _listen(path: Path) -> Console:
    try:
        return Console(path)
    except OSError as err:
        raise _not_created(path, err) from err


def _new_memory(path: Path, size_bytes: int, isolated: Isolation) -> int:
    descriptor = _create(path, os.O_RDWR)
    try:
        os.ftruncate(descriptor, size_bytes)
        if isolated.account is not None:
            # QEMU opens it once more through /proc, as whom it runs as.
            os.fchown(descriptor, isolated.account.uid, -1)
    except OSError as err:
        os.close(descriptor)
        raise InvalidRequestError(
            f"cannot make {size_bytes} bytes of memory: {err.strerror}",
            code="machine_too_large",
            remedy="give the template less memory",
        ) from err
    return descriptor


def _kvm_group() -> int:
    try:
        return Path(_KVM).stat().st_gid
    except OSError as err:
        raise _kvm_missing(err) from err


def _open_kvm() -> int:
    try:
        return os.open(_KVM, os.O_RDWR | os.O_CLOEXEC)
    except OSError as err:
        raise _kvm_missing(err) from err


def _kvm_missing(err: OSError) -> HostError:
    return HostError(
        f"cannot open {_KVM}: {err.strerror}",
        code="kvm_missing",
        remedy="add this account to the group kvm, or use the accelerator 'tcg'",
    )


def _require_short(path: Path) -> None:
    if len(os.fsencode(path)) > _SOCKET_PATH_LIMIT_BYTES:
        raise HostError(
            f"{str(path)!r} is longer than the {_SOCKET_PATH_LIMIT_BYTES} bytes of a socket's path",
            code="run_path_too_long",
            remedy="choose a shorter directory for running clones",
        )


def _refused(snapshot: Snapshot, err: EngineError) -> SnapshotError:
    words = err.log_tail.splitlines()[-1:]
    return SnapshotError(
        f"cannot load snapshot {snapshot.manifest.id!r}: {'; '.join([err.message, *words])}",
        code="snapshot_refused",
        remedy="verify it, or make the template again",
    )
