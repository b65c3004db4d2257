"""Throughput: as many clients as there may be, each with the next request as soon as one is done.

The clients are a process of their own. Two loads: runs, each in a machine of its own, which cannot
come faster than clones are restored; and executions in sandboxes that are there, which show what
the server and its link to a guest can carry.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from bench.load import Tally, What, send
from bench.measurement import Chapter, Effort, Findings, Measurement, Pace, Rounds
from bench.resting import emptied, settle
from bench.sandboxes import held
from vmpool.errors import VmpoolError
from vmpool.policy import Limits

if TYPE_CHECKING:
    from bench.subject import Subject

CLIENTS_QUICK = (1, 4, 16)
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
SECONDS_QUICK = 2.0
SECONDS = 4.0
"""Of each load with each number of clients: all of them come within the time of a full run."""

READY = 8
SANDBOXES = 4
"""Which executions are spread over."""

REQUESTS_MOST = 20_000


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Load the server with ever more clients; a round is one number of them."""
    full = pace.effort is Effort.FULL
    steps, seconds = (CLIENTS, SECONDS) if full else (CLIENTS_QUICK, SECONDS_QUICK)
    async with emptied(subject.pool):
        for turn in pace.turns():
            for load in (_runs, _executions):
                try:
                    await load(subject, steps[turn], seconds, findings)
                except VmpoolError as err:
                    findings.fail(err)


async def _runs(subject: Subject, clients: int, seconds: float, findings: Findings) -> None:
    limits = Limits(ready=READY, total=2 * READY, parallel_restores=max(2, os.cpu_count() or 1))
    await settle(subject.pool, limits)
    await _loaded(subject, What.RUN, clients, seconds, findings)


async def _executions(subject: Subject, clients: int, seconds: float, findings: Findings) -> None:
    await settle(subject.pool, Limits(ready=SANDBOXES, total=SANDBOXES))
    async with contextlib.AsyncExitStack() as alive:
        ids = [await alive.enter_async_context(held(subject)) for _ in range(SANDBOXES)]
        await _loaded(subject, What.EXECUTE, clients, seconds, findings, sandboxes=tuple(ids))


async def _loaded(
    subject: Subject,
    what: What,
    clients: int,
    seconds: float,
    findings: Findings,
    *,
    sandboxes: tuple[str, ...] = (),
) -> None:
    used = time.process_time()
    tally = await send(
        subject,
        what,
        clients=clients,
        requests=REQUESTS_MOST,
        seconds=seconds,
        sandboxes=sandboxes,
    )
    used = time.process_time() - used
    _note(tally, f"{what}, {clients} clients", 1000 * used, findings)


def _note(tally: Tally, name: str, used_ms: float, findings: Findings) -> None:
    findings.failures += [f"{name}: {failure}" for failure in tally.failures[:3]]
    if not tally.ended_ms:
        return
    for latency in tally.latencies:
        findings.series(f"{name}: latency").add(latency)
    findings.series(f"{name}: rate", unit="1/s").add(tally.rate)
    per_request = findings.series(f"{name}: server's CPU per request")
    per_request.add(used_ms / len(tally.ended_ms))


MEASUREMENT = Measurement(
    name="throughput",
    summary="1 to 64 clients at once: runs, each in a new machine, and executions in 4 sandboxes",
    rounds=Rounds(quick=len(CLIENTS_QUICK), full=len(CLIENTS)),
    weight=8,
    measure=measure,
    chapter=Chapter.SCALE,
    conditions={"page cache": "warm", "pool": "8 ready at first, refilled meanwhile"},
)
