"""Create: `POST /v1/sandboxes`, with a clone ready and with none, in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from bench.measurements.floors import HTTP
from bench.resting import at_rest, emptied, settle
from bench.samples import Target
from bench.sandboxes import ask, create
from vmpool.errors import VmpoolError
from vmpool.policy import Limits

if TYPE_CHECKING:
    from bench.subject import Subject

READY = Target(value=3.0)
CASES = (
    ("a clone ready", Limits(ready=1, total=1), READY),
    ("none ready", Limits(ready=0, total=1), None),
)


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Create and kill one sandbox under each condition in turn, the pool at rest before."""
    async with emptied(subject.pool):
        await _once(subject, Limits(ready=1, total=1))  # connects
        for _ in pace.turns():
            for name, limits, target in CASES:
                try:
                    created, killed = await _once(subject, limits)
                except VmpoolError as err:
                    findings.fail(err)
                    continue
                series = findings.series(f"create, {name}", target=target, floor=HTTP)
                series.add(created)
                findings.series("kill").add(killed)


async def _once(subject: Subject, limits: Limits) -> tuple[float, float]:
    await settle(subject.pool, limits)
    made = await create(subject)
    await at_rest(subject.pool, ready=0, held=1)
    killed = await ask(subject, "DELETE", f"/v1/sandboxes/{made.values['id']}")
    return made.milliseconds, killed.milliseconds


MEASUREMENT = Measurement(
    name="create",
    summary="POST /v1/sandboxes with a clone ready and with none, and its DELETE",
    rounds=Rounds(quick=10, full=100),
    weight=3,
    measure=measure,
    chapter=Chapter.USE,
    conditions={"page cache": "warm", "pool": "one ready clone and no refill, or none"},
)
