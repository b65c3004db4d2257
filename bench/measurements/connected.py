"""Connected: what a network adds to `POST /v1/sandboxes`, a clone and a slot ready, modes in turn.

Sandboxes have the machine's own network here: for the time of the measurement it has the server's
link, rules and route, as docs/networks.md says.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from bench.resting import LOOK_AGAIN, SETTLE_TIMEOUT, at_rest, emptied, settle
from bench.samples import Target
from bench.sandboxes import ask, create
from vmpool.config import NetworkSettings
from vmpool.errors import CapacityError, VmpoolError
from vmpool.policy import Limits

if TYPE_CHECKING:
    from bench.subject import Subject

NONE = "none"
MODES = (NONE, "restricted", "open")
ADDED = Target(value=3.0)

SLOTS = NetworkSettings().ready

_SLOTS = re.compile(r'^vmpool_network_slots\{state="(\w+)"\} (\S+)$', re.MULTILINE)


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Create and kill one sandbox of each mode in turn, pool and slots at rest before."""
    async with emptied(subject.pool):
        try:
            await _once(subject, MODES[-1])  # makes what slots share
        except VmpoolError as err:
            findings.remark(f"there are no networks here: {err}")
            return
        for turn in pace.turns():
            start = turn % len(MODES)
            for mode in MODES[start:] + MODES[:start]:
                try:
                    created, killed = await _once(subject, mode, slots=SLOTS)
                except VmpoolError as err:
                    findings.fail(err)
                    continue
                findings.series(f"create, network {mode}").add(created)
                findings.series(f"kill, network {mode}").add(killed)
    _compare(findings)


def _compare(findings: Findings) -> None:
    base = findings.series(f"create, network {NONE}")
    for mode in MODES[1:]:
        series = findings.series(f"create, network {mode}")
        if base.samples and series.samples:
            added = series.median - base.median
            findings.series(f"network {mode}: added", "ms of medians", ADDED).add(added)


async def _once(subject: Subject, mode: str, *, slots: int = 0) -> tuple[float, float]:
    await settle(subject.pool, Limits(ready=1, total=1))
    await _slots_ready(subject, slots)
    made = await create(subject, mode)
    await at_rest(subject.pool, ready=0, held=1)
    killed = await ask(subject, "DELETE", f"/v1/sandboxes/{made.values['id']}")
    return made.milliseconds, killed.milliseconds


async def _slots_ready(subject: Subject, wanted: int) -> None:
    """Return once so many slots are made ahead, and none is being removed or made beside.

    Raises:
        CapacityError: They did not come in time.
    """
    try:
        async with asyncio.timeout(SETTLE_TIMEOUT):
            # Nobody tells of a slot, and this wait is outside what is measured.
            while not _are_at_rest(await _slots(subject), wanted):  # noqa: ASYNC110
                await asyncio.sleep(LOOK_AGAIN)
    except TimeoutError as err:
        raise CapacityError("no network slot was made ahead") from err


def _are_at_rest(slots: dict[str, int], wanted: int) -> bool:
    return slots.get("ready", 0) >= wanted and (not wanted or slots["taken"] == 0)


async def _slots(subject: Subject) -> dict[str, int]:
    async with subject.stand.client.get("/metrics") as response:
        found = _SLOTS.findall(await response.text())
    return {state: int(float(count)) for state, count in found}


MEASUREMENT = Measurement(
    name="connected",
    summary="POST /v1/sandboxes with each mode of network, in turn",
    rounds=Rounds(quick=10, full=60),
    weight=3,
    measure=measure,
    chapter=Chapter.USE,
    conditions={"page cache": "warm", "pool": "one ready clone and no refill", "slots": "ready"},
)
