"""Hypervisor: one QEMU process with its control socket, from start to end.

What a waiting shell and a machine have in common. Its errors carry the command line and the tail
of the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vmpool.cancellation import uninterrupted
from vmpool.engine.qemu import process as processes
from vmpool.engine.qemu.jail import cgroup
from vmpool.engine.qemu.monitor import Monitor
from vmpool.engine.qemu.output import Output
from vmpool.engine.qemu.record import Record
from vmpool.errors import EngineError, GuestError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping
    from pathlib import Path

    from vmpool.engine.qemu.isolation import Jail
    from vmpool.engine.qemu.jail.cgroup import Cgroup
    from vmpool.engine.qemu.process import Process
    from vmpool.errors import InfrastructureError
    from vmpool.model import MachineSpec

log = logging.getLogger(__name__)

QMP_SOCKET = "qmp"

_GUEST_ENDINGS = {
    "guest-panic": ("the guest's kernel panicked", "guest_panicked"),
    "guest-reset": ("the guest rebooted", "guest_rebooted"),
    "guest-shutdown": ("the guest powered off", "guest_powered_off"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTimings:
    """How long the start of a hypervisor took, in nanoseconds of the monotonic clock.

    Attributes:
        spawn_ns: Until the process existed.
        monitor_ns: From there until it answered on its control socket.
    """

    spawn_ns: int
    monitor_ns: int


class Hypervisor:
    """A QEMU process that answers. Made by `start` or `rejoin`; whoever holds it calls `kill`."""

    def __init__(
        self,
        process: Process,
        monitor: Monitor,
        argv: tuple[str, ...],
        output: Output,
        timings: StartTimings,
        *,
        group: Cgroup | None = None,
    ) -> None:
        self.process = process
        self.monitor = monitor
        self.timings = timings
        self._argv = argv
        self._output = output
        self._group = group

    async def execute(self, command: str, **arguments: object) -> Any:
        """Run a QMP command, as `Monitor.execute`.

        Raises:
            EngineError: QEMU refused, did not answer, or is gone.
        """
        try:
            return await self.monitor.execute(command, **arguments)
        except EngineError as err:
            raise self.explained(err) from err

    def explained(self, err: EngineError) -> EngineError:
        """Return `err` with this process's command line and what it logged."""
        return _explained(err, self._argv, self._output)

    async def kill(self) -> None:
        """End the process and the session. *Idempotent*, completes when cancelled."""
        await uninterrupted(_end(self.process, self.monitor, self._output, self._group))

    async def release(self) -> None:
        """Let go of the process, which lives on. *Idempotent*, completes when cancelled."""
        self.process.release()
        self._output.close()
        await uninterrupted(self.monitor.close())

    async def obituary(self) -> InfrastructureError:
        """Wait for the end and return, as an error to raise, what it was."""
        code = await self.process.wait()
        events = await self.monitor.last_events()
        if self.monitor.flooded:
            what = "the guest had QEMU send more events than a guest has cause for"
            return GuestError(what, code="guest_event_flood")
        for event in events:
            if event["event"] == "SHUTDOWN" and (reason := _reason(event)) in _GUEST_ENDINGS:
                what, error_code = _GUEST_ENDINGS[reason]
                return GuestError(what, code=error_code)
        return self.explained(EngineError(f"QEMU ended with {code}", code="qemu_died"))


async def start(
    argv: tuple[str, ...],
    *,
    slots: Mapping[int, int],
    directory: Path,
    jail: Jail,
    spec: MachineSpec,
    cid: int | None,
) -> Hypervisor:
    """Start QEMU and return once it answers; on failure or cancellation it is gone.

    Args:
        slots: Number in the process → our descriptor; ours to close.
        directory: The machine's own, with the socket `QMP_SOCKET` that is among the slots.
        jail: What holds it.
        spec: For the record that a later manager finds in `directory`; `cid` likewise.

    Raises:
        EngineError: QEMU did not start.
        HostError: It is missing, or cannot be isolated.
    """
    began = time.perf_counter_ns()
    output = Output.create()
    group = jail.group(directory)
    try:
        if group is not None:
            await uninterrupted(asyncio.to_thread(group.make, jail.limits))
        process = await processes.spawn(argv, slots=slots, log=output.fileno(), jail=jail)
    except BaseException:
        output.close()
        await _given_up(_remove(group))
        raise
    monitor = Monitor(on_flood=process.send_kill)
    try:
        spawned = time.perf_counter_ns()
        Record.of(process.pid, spec, cid).write(directory)
        # Takes as long as the kernel's other processors; QEMU starts meanwhile.
        joining = asyncio.ensure_future(_join(group, process))
        try:
            await _connect(monitor, process, directory)
        finally:
            await uninterrupted(joining)
    except BaseException as err:
        await _given_up(_end(process, monitor, output, group))
        if isinstance(err, EngineError):
            raise _explained(err, argv, output) from err
        raise
    timings = StartTimings(spawn_ns=spawned - began, monitor_ns=time.perf_counter_ns() - spawned)
    return Hypervisor(process, monitor, argv, output, timings, group=group)


async def rejoin(
    process: Process, *, argv: tuple[str, ...], directory: Path, deadline: float
) -> Hypervisor:
    """Take over a QEMU that another manager started; on failure or cancellation it is let go.

    QEMU serves one manager at a time, and the next as soon as the kernel has closed the socket of
    one that was killed.

    Args:
        process: Let go of likewise.
        argv: What it was started with, for its errors.
        deadline: Seconds within which it must answer.

    Raises:
        EngineError: It is gone (`qemu_died`), or does not answer (`qemu_silent`).
    """
    began = time.perf_counter_ns()
    monitor = Monitor(on_flood=process.send_kill)
    output = Output.of(process.pid)
    timings = StartTimings(spawn_ns=0, monitor_ns=0)
    try:
        async with asyncio.timeout(deadline):
            await _connect(monitor, process, directory)
        timings = replace(timings, monitor_ns=time.perf_counter_ns() - began)
        group = await asyncio.to_thread(cgroup.of_machine, directory)
        return Hypervisor(process, monitor, argv, output, timings, group=group)
    except BaseException as err:
        await Hypervisor(process, monitor, argv, output, timings).release()
        if isinstance(err, TimeoutError):
            raise EngineError("QEMU did not greet in time", code="qemu_silent") from err
        raise


async def _connect(monitor: Monitor, process: Process, directory: Path) -> None:
    """Connect, and notice at once when QEMU ends instead.

    The socket is no help there: whoever else holds it open keeps our connection waiting.
    """
    connected = asyncio.ensure_future(monitor.connect(directory, QMP_SOCKET))
    ended = asyncio.ensure_future(process.wait())
    try:
        await asyncio.wait((connected, ended), return_when=asyncio.FIRST_COMPLETED)
        if not connected.done():
            code = ended.result()
            raise EngineError(f"QEMU ended with {code} before it answered", code="qemu_died")
        await connected
    finally:
        connected.cancel()
        ended.cancel()
        await asyncio.wait((connected, ended))


async def _end(process: Process, monitor: Monitor, output: Output, group: Cgroup | None) -> None:
    try:
        await process.kill()
        await monitor.ended()  # its last events are read before the session is closed
    finally:
        output.close()
        try:
            await _remove(group)
        finally:
            await monitor.close()


async def _given_up(ending: Awaitable[None]) -> None:
    """Finish what ends a start that failed; why that failed is what the caller learns."""
    try:
        await uninterrupted(ending)
    except EngineError as err:
        log.error("a QEMU whose start failed is not gone: %s", err)


async def _join(group: Cgroup | None, process: Process) -> None:
    if group is not None:
        await asyncio.to_thread(group.add, process.pid)


async def _remove(group: Cgroup | None) -> None:
    if group is not None:
        await asyncio.to_thread(group.remove)


def _reason(event: Mapping[str, Any]) -> str:
    """Return why QEMU ended, as it says; a hostile one may say anything."""
    data = event.get("data")
    return str(data.get("reason")) if isinstance(data, dict) else ""


def _explained(err: EngineError, argv: tuple[str, ...], output: Output) -> EngineError:
    return EngineError(
        err.message, code=err.error_code, remedy=err.remedy, argv=argv, log_tail=output.tail
    )
