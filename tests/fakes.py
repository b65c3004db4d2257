"""Fakes: an engine without hypervisors.

Its machines are the real guest agent as a local process: paused is stopped, killed is killed. They
are on record like QEMUs, so that a host that starts finds those of one that was killed. What it
saves is small and has no meaning. It passes the same contract suite as the real engine, which is
what makes it worth trusting.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests import processes
from tests.fake_capture import STATE, FakeCapture
from vmpool.cancellation import uninterrupted
from vmpool.engine.qemu import orphan, record
from vmpool.engine.qemu.process import Process
from vmpool.engine.qemu.record import Record
from vmpool.errors import (
    ConflictError,
    DiskFullError,
    EngineError,
    InfrastructureError,
    InvalidRequestError,
    SnapshotError,
    VmpoolError,
)
from vmpool.model import Nic, Processor, SerialAddress
from vmpool.snapshot import DEVICE_STATE, DISK, MEMORY, layer_name

if TYPE_CHECKING:
    from tests.fake_stem import Stem
    from vmpool.model import Attachment, Kernel, MachineSpec
    from vmpool.snapshot import Snapshot

VERSION = "10.0.2"
PROCESSOR = Processor(vendor="AuthenticAMD", features=frozenset({"avx2", "sse2"}))
CONSOLE = "console"

_START_TIMEOUT = 30.0
_POLL = 0.002


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong in a fake engine.

    Attributes:
        boot: Raised by `boot`, before anything is started; `prepare` likewise.
        load: Raised by `load`, after which the shell is gone.
        load_delay: Seconds that `load` takes.
        resume: Raised by `resume`; `pause`, `disconnect`, `save`, `kill`, and a capture's `take`
            and `write` likewise.
        life: Seconds from `resume` until a machine dies by itself; `None` for for ever.
        guest: More of a guest's command line; see `fake_guest`.
        death: What a machine that died by itself died of, as its obituary says.
    """

    boot: VmpoolError | None = None
    prepare: VmpoolError | None = None
    load: VmpoolError | None = None
    load_delay: float = 0.0
    resume: VmpoolError | None = None
    pause: VmpoolError | None = None
    disconnect: VmpoolError | None = None
    save: VmpoolError | None = None
    take: VmpoolError | None = None
    write: VmpoolError | None = None
    kill: VmpoolError | None = None
    life: float | None = None
    guest: tuple[str, ...] = ()
    death: InfrastructureError | None = None


class FakeEngine:
    """Starts guest agents as local processes.

    Args:
        faults: What goes wrong; assign `faults` to change it between calls.
        stem: What guests are forked from; they are started one by one without.

    Attributes:
        boots: How many machines it has booted.
        offered: What it says that its host can give.
        make: Another one makes other machines of the same specs.
    """

    def __init__(
        self, faults: Faults | None = None, *, version: str = VERSION, stem: Stem | None = None
    ) -> None:
        self.faults = faults or Faults()
        self._stem = stem
        self.boots = 0
        self.offered = PROCESSOR
        self.make = "first"
        self._version = version

    @property
    def version(self) -> str:
        return self._version

    def close(self) -> None:
        pass

    def shape(self, spec: MachineSpec) -> str:
        return f"{self.make} {spec.machine_type}"

    async def processor(self, spec: MachineSpec, at: Attachment) -> Processor:
        assert spec.qemu_version == self.version
        assert not list(at.directory.iterdir())
        return self.offered

    async def boot(self, spec: MachineSpec, kernel: Kernel, at: Attachment) -> FakeMachine:
        for path in (kernel.kernel, kernel.initrd, spec.root):
            if not path.exists():
                raise EngineError(f"cannot open {str(path)!r}")
        self.boots += 1
        if self.faults.boot is not None:
            raise self.faults.boot
        guest = await _Guest.start(at.directory, spec, CONSOLE, self.faults.guest, stem=self._stem)
        return FakeMachine(guest, spec, self.faults)

    async def prepare(self, template: Snapshot, at: Attachment) -> FakeShell:
        if self.faults.prepare is not None:
            raise self.faults.prepare
        guest = await _Guest.start(
            at.directory, template.spec, "log", self.faults.guest, stem=self._stem
        )
        guest.signal(signal.SIGSTOP)
        return FakeShell(guest, template, self.faults)

    async def reboot(
        self, template: Snapshot, state: Snapshot, kernel: Kernel, at: Attachment
    ) -> FakeMachine:
        state.require_of(template)
        machine = await self.boot(template.spec, kernel, at)
        machine.restored = True
        try:
            await machine.resume()
        except EngineError:
            await machine.kill()
            raise
        return machine

    async def adopt(self, template: Snapshot, at: Attachment) -> FakeMachine:
        found = record.read(at.directory)
        process = None if found is None else orphan.hold(found)
        if process is None:
            raise EngineError("there is no such machine", code="machine_lost")
        guest = _Guest(_Adopted(process), at.directory / "agent")
        machine = FakeMachine(guest, template.spec, self.faults, restored=True)
        await machine.resume()
        return machine


class FakeShell:
    """A stopped agent that nobody has talked to."""

    def __init__(self, guest: _Guest, template: Snapshot, faults: Faults) -> None:
        self._guest = guest
        self._template = template
        self._faults = faults

    @property
    def pid(self) -> int:
        return self._guest.pid

    async def load(self, snapshot: Snapshot) -> FakeMachine:
        try:
            await asyncio.sleep(self._faults.load_delay)
            self._require_loadable(snapshot)
        except BaseException:
            await self.kill()
            raise
        return FakeMachine(self._guest, self._template.spec, self._faults, restored=True)

    async def wait(self) -> int:
        return await self._guest.wait()

    async def kill(self) -> None:
        await self._guest.kill()

    def _require_loadable(self, snapshot: Snapshot) -> None:
        if self._faults.load is not None:
            raise self._faults.load
        snapshot.require_loadable_over(self._template)
        if snapshot.device_state.read_bytes() != STATE:
            raise SnapshotError("a fake state it is not", code="snapshot_refused")
        if self._guest.exit_code is not None:
            raise EngineError("the shell is gone", code="qemu_died")


class FakeMachine:
    """A guest agent as a local process."""

    def __init__(
        self, guest: _Guest, spec: MachineSpec, faults: Faults, *, restored: bool = False
    ) -> None:
        self._guest = guest
        self._spec = spec
        self._faults = faults
        self.restored = restored
        self.capturing = asyncio.Lock()
        self.paused = restored
        self.tap: int | None = None

    @property
    def pid(self) -> int:
        return self._guest.pid

    @property
    def spec(self) -> MachineSpec:
        return self._spec

    @property
    def agent_address(self) -> SerialAddress:
        return SerialAddress(path=self._guest.socket)

    async def processor(self) -> Processor:
        return PROCESSOR

    def require_alive(self) -> None:
        if self._guest.exit_code is not None:
            raise EngineError("the machine is gone", code="qemu_died")

    async def pause(self) -> None:
        if self._faults.pause is not None:
            raise self._faults.pause
        self._guest.signal(signal.SIGSTOP)
        self.paused = True
        await asyncio.sleep(0)  # stopped, and nobody knows it yet

    async def resume(self) -> None:
        if self._faults.resume is not None:
            raise self._faults.resume
        self._guest.signal(signal.SIGCONT)
        self.paused = False
        if self._faults.life is not None:
            self._guest.expire(self._faults.life)

    async def connect(self, tap: int) -> None:
        if self._spec.nic is Nic.NONE:
            raise ConflictError("the machine has no network card", code="nic_missing")
        if self.tap is not None:
            raise EngineError("QEMU refused 'netdev_add'", code="qmp_refused")
        self.tap = os.dup(tap)

    async def disconnect(self) -> None:
        if self._faults.disconnect is not None:
            raise self._faults.disconnect
        self._drop_tap()

    def _drop_tap(self) -> None:
        if self.tap is not None:
            os.close(self.tap)
            self.tap = None

    async def save(self, directory: Path) -> None:
        if not self.paused:
            raise EngineError("only a paused machine can be saved", code="machine_running")
        if self._faults.save is not None:
            raise self._faults.save
        try:
            (directory / MEMORY).write_bytes(bytes(4096))
            (directory / DEVICE_STATE).write_bytes(STATE)
            if self._spec.disk_bytes:
                (directory / DISK).write_bytes(bytes(4096))
        except OSError as err:
            for name in (MEMORY, DEVICE_STATE, DISK):
                (directory / name).unlink(missing_ok=True)
            raise DiskFullError("no space for a fake state") from err
        await self.kill()

    def capture(self, directory: Path) -> FakeCapture:
        if not self.restored:
            raise EngineError("a booted machine differs from nothing", code="machine_booted")
        return FakeCapture(self, directory, self._faults)

    def capture_disk(self, directory: Path) -> FakeCapture:
        if not (self.restored and self._spec.disk_bytes):
            raise InvalidRequestError("there is no disk to keep", code="disk_missing")
        return FakeCapture(self, directory, self._faults, files=(layer_name(0),))

    async def wait(self) -> int:
        return await self._guest.wait()

    async def obituary(self) -> InfrastructureError:
        died = EngineError(f"QEMU ended with {await self.wait()}", code="qemu_died")
        return self._faults.death or died

    async def kill(self) -> None:
        self._drop_tap()
        await self._guest.kill()
        if self._faults.kill is not None:
            raise self._faults.kill

    async def release(self) -> None:
        self._guest.release()


class _Adopted:
    """A process that is not our child, with the verbs of one that is."""

    def __init__(self, held: Process) -> None:
        self._held = held
        self.pid = held.pid

    @property
    def returncode(self) -> int | None:
        return self._held.exit_code

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    async def wait(self) -> int:
        return await self._held.wait()

    def release(self) -> None:
        self._held.release()


class _Guest:
    """One agent process and what it started."""

    def __init__(self, process: asyncio.subprocess.Process | _Adopted, socket: Path) -> None:
        self._process = process
        self._expiry: asyncio.TimerHandle | None = None
        self._ended = False
        self._released = False
        self.socket = socket

    @classmethod
    async def start(
        cls,
        directory: Path,
        spec: MachineSpec,
        log_name: str,
        options: tuple[str, ...],
        *,
        stem: Stem | None = None,
    ) -> _Guest:
        socket = directory / "agent"
        starting = asyncio.ensure_future(
            _started(socket, directory / log_name, options)
            if stem is None
            else _forked(stem, socket, directory / log_name, options)
        )
        try:
            await uninterrupted(starting)
        except asyncio.CancelledError:
            await cls(starting.result(), socket).kill()
            raise
        process = starting.result()
        guest = cls(process, socket)
        try:
            Record.of(process.pid, spec, None).write(directory)
            async with asyncio.timeout(_START_TIMEOUT):
                await guest._listening()
        except BaseException:
            await guest.kill()
            raise
        return guest

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    def signal(self, number: signal.Signals) -> None:
        if self.exit_code is not None:
            raise EngineError("the machine is gone", code="qemu_died")
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def release(self) -> None:
        """Let it live on; a child of ours is reaped all the same."""
        self._ended = self._released = True
        if isinstance(self._process, _Adopted):
            self._process.release()

    def expire(self, delay: float) -> None:
        if self._expiry is None:
            self._expiry = asyncio.get_running_loop().call_later(delay, self._kill_all)

    async def wait(self) -> int:
        return await self._process.wait()

    async def kill(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        if self._released:
            return
        self._kill_all()
        await uninterrupted(self._process.wait())

    def _kill_all(self) -> None:
        """Kill the agent and all that it started, as the end of a machine would."""
        if self._ended:
            return
        self._ended = True
        doomed = [*processes.descendants(self.pid), *processes.naming(self.socket)]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # what a crashed agent has left, too
        while doomed:
            for pid in doomed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            doomed = processes.naming(self.socket)  # one that was just forking has one more

    async def _listening(self) -> None:
        """Wait until the agent listens, without connecting: it would count as a session."""
        wanted = str(self.socket)
        while True:
            if self.exit_code is not None:
                raise EngineError(f"the agent ended with {self.exit_code}", code="qemu_died")
            if processes.is_listening(wanted):
                return
            await asyncio.sleep(_POLL)


async def _started(
    socket: Path, log: Path, options: tuple[str, ...]
) -> asyncio.subprocess.Process | _Adopted:
    with log.open("ab") as file:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.fake_guest", str(socket)),
            *("--recorded", str(os.getpid()), *options),
            cwd=Path(__file__).parents[1],
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )


async def _forked(
    stem: Stem, socket: Path, log: Path, options: tuple[str, ...]
) -> asyncio.subprocess.Process | _Adopted:
    arguments = (str(socket), "--recorded", "{stem}", *options)
    return _Adopted(Process.open(await asyncio.to_thread(stem.fork, arguments, log)))
