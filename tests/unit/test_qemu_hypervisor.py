"""What a QEMU that has ended is believed of its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest

from vmpool.engine.qemu.hypervisor import Hypervisor, StartTimings
from vmpool.engine.qemu.output import Output

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmpool.engine.qemu.monitor import Monitor
    from vmpool.engine.qemu.process import Process


class Ended:
    """Process and control socket of a QEMU that has ended, after some last events."""

    flooded = False

    def __init__(self, *events: Mapping[str, Any]) -> None:
        self._events = events

    async def wait(self) -> int:
        return 0

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
