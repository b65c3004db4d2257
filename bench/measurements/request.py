"""Request: `POST /v1/run` of `print(6*7)` when a clone is ready.

Two series in turn. Alone: the pool holds one clone and may have no other, so nothing is restored
before that one is gone. Beside a refill: the pool keeps spares and restores the next one the moment
a request takes one, as a server does under load.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from bench.measurements.floors import HTTP
from bench.resting import emptied, settle
from bench.samples import Target
from vmpool.errors import InfrastructureError, VmpoolError
from vmpool.policy import Limits

if TYPE_CHECKING:
    from bench.subject import Subject

FIRST_OUTPUT = Target(value=25.0)
SERVER_PHASES = ("acquire", "first_output", "execute", "total")


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What happens beside a request.

    Attributes:
        limits: Of the pool while the request is made.
        target: For the first output.
    """

    name: str
    limits: Limits
    target: Target | None


LOADS = (
    Load(name="alone", limits=Limits(ready=1, total=1), target=FIRST_OUTPUT),
    Load(name="beside a refill", limits=Limits(ready=2, total=8), target=None),
)


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Send one request under each load in turn, each when the pool has come to rest."""
    async with emptied(subject.pool):
        # The first request connects, and imports what the server imports late.
        await _under(LOADS[0], subject)
        for _ in pace.turns():
            for load in LOADS:
                try:
                    times = await _under(load, subject)
                except VmpoolError as err:
                    findings.fail(err)
                    continue
                for name, milliseconds in times.items():
                    target = load.target if name == "ready to first output" else None
                    series = findings.series(f"{load.name}: {name}", target=target, floor=HTTP)
                    series.add(milliseconds)


async def _under(load: Load, subject: Subject) -> dict[str, float]:
    await settle(subject.pool, load.limits)
    return await _send(subject)


async def _send(subject: Subject) -> dict[str, float]:
    """Send one request and check its answer; return its phases in milliseconds."""
    body = {"template": subject.template.name, "code": "print(6*7)"}
    began = time.perf_counter_ns()
    try:
        async with subject.stand.client.post("/v1/run", json=body) as response:
            answer: dict[str, Any] = await response.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError) as err:
        raise InfrastructureError(f"the request failed: {err!r}") from err
    client = (time.perf_counter_ns() - began) / 1e6
    if response.status != 200 or answer["stdout"] != "42\n":
        raise InfrastructureError(f"the answer is wrong: {response.status} {str(answer)[:500]}")
    timings: dict[str, float] = answer["timings_ms"]
    return {
        "ready to first output": timings["acquire"] + timings["first_output"],
        **{f"server, {phase}": timings[phase] for phase in SERVER_PHASES},
        "client, to the full answer": client,
    }


MEASUREMENT = Measurement(
    name="request",
    summary="POST /v1/run of print(6*7) with a ready clone, alone and beside a refill",
    rounds=Rounds(quick=12, full=100),
    weight=4,
    measure=measure,
    chapter=Chapter.USE,
)
