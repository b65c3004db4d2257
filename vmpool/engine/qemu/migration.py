"""Migration: a machine's device state out of QEMU and into it, through QEMU's migration stream.

RAM is not in the stream: it lies in a file that both ends have (capability `x-ignore-shared`). The
end of a migration is an event, and so is the end of the process; whichever comes first decides.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from vmpool.engine.qemu.command import DEVICES_FDSET, STATE_FDSET
from vmpool.errors import EngineError

if TYPE_CHECKING:
    from vmpool.engine.qemu.monitor import Monitor
    from vmpool.engine.qemu.process import Process

TIMEOUT = 60.0
"""Seconds within which a device state of a few hundred kilobytes must have moved."""

KEEPS_RUNNING_SINCE = (9, 1)
"""First version that can report why an incoming state was refused instead of exiting."""


async def enable(monitor: Monitor) -> None:
    """Make QEMU leave RAM out of the stream and tell by events how a migration goes.

    Nor does a guest announce on its network that it has moved, for it has not: five times in its
    first second that would wake it up, in the middle of becoming somebody.
    """
    wanted = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
    # Sent at once, done in order: what each takes is mostly the way there and back.
    await asyncio.gather(
        monitor.execute("migrate-set-capabilities", capabilities=wanted),
        monitor.execute("migrate-set-parameters", announce_rounds=0),
    )


async def send(monitor: Monitor, process: Process, descriptor: int) -> None:
    """Write the device state of a paused machine to `descriptor`, open for writing.

    Raises:
        EngineError: QEMU failed or died; what was written is no state.
    """
    await monitor.add_descriptor(descriptor, STATE_FDSET)
    await monitor.execute("migrate", uri=f"file:/dev/fdset/{STATE_FDSET}")
    await _completed(monitor, process)


async def offer(monitor: Monitor, descriptor: int) -> None:
    """Give QEMU what `save_devices` writes to, open for writing alone; the last one counts.

    Raises:
        EngineError: QEMU failed or died.
    """
    await monitor.add_descriptor(descriptor, DEVICES_FDSET)


async def save_devices(monitor: Monitor) -> None:
    """Write the devices of a paused machine, and no RAM, to what was offered.

    The command is Xen's by name only: it writes the devices and leaves the machine as it was.

    Raises:
        EngineError: QEMU failed or died, or the machine is not paused (`machine_running`); what was
            written is no state.
    """
    # QEMU takes commands in order: none of these need wait for the answer to the one before.
    saving = monitor.execute(
        "xen-save-devices-state", filename=f"/dev/fdset/{DEVICES_FDSET}", live=False
    )
    # Or QEMU would keep every one of them open, and what was written to it in memory.
    forgetting = monitor.execute("remove-fd", fdset_id=DEVICES_FDSET)
    answers = await asyncio.gather(
        monitor.execute("query-status"), saving, forgetting, return_exceptions=True
    )
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    status: Any = answers[0]
    if status["running"]:
        raise EngineError("only a paused machine can be saved", code="machine_running")


async def forget(monitor: Monitor) -> None:
    """Have QEMU close what an earlier manager may have offered it.

    Raises:
        EngineError: QEMU failed or died.
    """
    offered = {fdset["fdset-id"] for fdset in await monitor.execute("query-fdsets")}
    for fdset in offered & {STATE_FDSET, DEVICES_FDSET}:
        await monitor.execute("remove-fd", fdset_id=fdset)


async def receive(
    monitor: Monitor, process: Process, descriptor: int, version: tuple[int, ...]
) -> None:
    """Load the device state in `descriptor`, open for reading, into a waiting QEMU.

    Raises:
        EngineError: QEMU refused the state (`state_refused`), failed or died.
    """
    options: dict[str, object] = {}
    if version >= KEEPS_RUNNING_SINCE:
        options["exit_on_error"] = False
    uri = f"file:/dev/fdset/{STATE_FDSET}"
    # QEMU takes commands in order: once it has the file, neither need wait for the other's answer.
    answers = await asyncio.gather(
        monitor.add_descriptor(descriptor, STATE_FDSET),
        monitor.execute("migrate-incoming", uri=uri, **options),
        # It has opened it by then, and would keep the other as long as it lives.
        monitor.execute("remove-fd", fdset_id=STATE_FDSET),
        return_exceptions=True,
    )
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    await _completed(monitor, process)


async def _completed(monitor: Monitor, process: Process) -> None:
    ended = asyncio.ensure_future(process.wait())
    status = asyncio.ensure_future(_final_status(monitor))
    try:
        async with asyncio.timeout(TIMEOUT):
            await asyncio.wait((ended, status), return_when=asyncio.FIRST_COMPLETED)
    except TimeoutError as err:
        raise EngineError("the migration did not end in time", code="qemu_silent") from err
    finally:
        ended.cancel()
        status.cancel()
        await asyncio.wait((ended, status))
    if status.cancelled():
        code = process.exit_code
        raise EngineError(f"QEMU ended with {code} during a migration", code="state_refused")
    if status.result() != "completed":
        reason = await _reason(monitor)
        raise EngineError(f"QEMU refused the state: {reason}", code="state_refused")


async def _final_status(monitor: Monitor) -> str:
    while True:
        event = await monitor.event()
        if event["event"] == "MIGRATION":
            status = str(event["data"]["status"])
            if status in {"completed", "failed", "cancelled"}:
                return status


async def _reason(monitor: Monitor) -> str:
    with contextlib.suppress(EngineError):  # QEMU may end meanwhile; its log has the words then
        answer = await monitor.execute("query-migrate")
        return str(answer.get("error-desc", "no reason given"))
    return "it ended before it said why"
