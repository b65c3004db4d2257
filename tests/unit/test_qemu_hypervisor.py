"""What a QEMU that has ended is believed of its end."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from vmpool.engine.qemu import hypervisor as hypervisors
from vmpool.engine.qemu import process as processes
from vmpool.engine.qemu.hypervisor import Hypervisor, StartTimings
from vmpool.engine.qemu.output import Output
from vmpool.errors import EngineError, HostError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vmpool.engine.qemu.isolation import Jail
    from vmpool.engine.qemu.jail.cgroup import Cgroup
    from vmpool.engine.qemu.monitor import Monitor
    from vmpool.engine.qemu.process import Process
    from vmpool.model import MachineSpec


class Ended:
    """Process and control socket of a QEMU that has ended, after some last events."""

    flooded = False
    closed = False
    pid = os.getpid()

    def __init__(self, *events: Mapping[str, Any]) -> None:
        self._events = events

    async def wait(self) -> int:
        return 0

    async def kill(self) -> None:
        """Have ended."""

    def send_kill(self) -> None:
        """Have ended."""

    async def ended(self) -> None:
        """Have read everything."""

    async def close(self) -> None:
        self.closed = True

    async def last_events(self) -> list[Mapping[str, Any]]:
        return list(self._events)


def hypervisor(*events: Mapping[str, Any]) -> Hypervisor:
    ended = Ended(*events)
    timings = StartTimings(spawn_ns=0, monitor_ns=0)
    return Hypervisor(
        cast("Process", ended), cast("Monitor", ended), ("qemu",), Output(-1), timings
    )


async def test_a_guest_that_ended_its_machine_is_named() -> None:
    event = {"event": "SHUTDOWN", "data": {"reason": "guest-reset", "guest": True}}
    assert (await hypervisor(event).obituary()).error_code == "guest_rebooted"


@pytest.mark.parametrize(
    "data", [{}, {"data": None}, {"data": "guest-reset"}, {"data": {}}, {"data": {"reason": []}}]
)
async def test_a_qemu_that_talks_nonsense_as_it_ends_has_ended_all_the_same(
    data: dict[str, Any],
) -> None:
    error = await hypervisor({"event": "SHUTDOWN"} | data).obituary()
    assert error.error_code == "qemu_died"


class Stuck:
    """A control group whose processes do not end."""

    def make(self, _: object) -> None:
        """Be made."""

    def add(self, _: int) -> None:
        """Take it."""

    def remove(self) -> None:
        raise EngineError("they do not end", code="process_stuck")


async def test_a_session_is_closed_although_the_group_cannot_be_removed() -> None:
    ended, timings = Ended(), StartTimings(spawn_ns=0, monitor_ns=0)
    held = Hypervisor(
        cast("Process", ended),
        cast("Monitor", ended),
        ("qemu",),
        Output(-1),
        timings,
        group=cast("Cgroup", Stuck()),
    )
    with pytest.raises(EngineError) as raised:
        await held.kill()
    assert raised.value.error_code == "process_stuck"
    assert ended.closed


async def start(directory: Path) -> None:
    """Start what is on paper, in a group whose processes do not end."""
    jail = SimpleNamespace(group=lambda _: Stuck(), limits=None)
    spec = cast("MachineSpec", SimpleNamespace())
    await hypervisors.start(
        ("qemu",), slots={}, directory=directory, jail=cast("Jail", jail), spec=spec, cid=None
    )


@pytest.mark.parametrize(
    "refusal",
    [HostError("no QEMU", code="qemu_missing"), asyncio.CancelledError()],
    ids=["missing", "cancelled"],
)
async def test_why_a_start_failed_is_told_although_its_group_cannot_be_removed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    refusal: BaseException,
) -> None:
    async def refuse(*_: object, **__: object) -> Process:
        raise refusal

    monkeypatch.setattr(processes, "spawn", refuse)
    with pytest.raises(type(refusal)) as raised:
        await start(tmp_path)
    assert raised.value is refusal
    assert "they do not end" in caplog.text


async def test_why_a_started_one_is_given_up_is_told_although_it_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def spawn(*_: object, **__: object) -> Process:
        return cast("Process", Ended())

    async def refuse(*_: object) -> None:
        raise EngineError("no greeting", code="qemu_silent")

    monkeypatch.setattr(processes, "spawn", spawn)
    monkeypatch.setattr(hypervisors, "_connect", refuse)
    monkeypatch.setattr(hypervisors, "Record", SimpleNamespace(of=lambda *_: _Unwritten()))
    with pytest.raises(EngineError) as raised:
        await start(tmp_path)
    assert raised.value.error_code == "qemu_silent"
    assert "they do not end" in caplog.text


class _Unwritten:
    """A record of nothing."""

    def write(self, _: Path) -> None:
        """Write nothing."""
