"""Timings: how long the phases of a clone's coming up took, and how long they may take."""

from __future__ import annotations

import time
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreTimings:
    """How long each phase of one restore took, in nanoseconds of the monotonic clock.

    Attributes:
        spawn_ns: Start of the hypervisor until it waits for a state; 0 when one waited already.
        load_ns: Loading the device state over the privately mapped memory.
        resume_ns: Letting the virtual CPUs run.
        hello_ns: Until the agent answered.
        identify_ns: Until the agent confirmed the clone's identity.
        warm_ns: One trivial execution, so that the holder's first is not the guest's first; 0 for
            a clone that goes on where another was.
        rest_ns: Stopping the virtual CPUs again; 0 likewise.
    """

    spawn_ns: int
    load_ns: int
    resume_ns: int
    hello_ns: int
    identify_ns: int
    warm_ns: int = 0
    rest_ns: int = 0

    @property
    def total_ns(self) -> int:
        """All phases together."""
        return sum(getattr(self, phase.name) for phase in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreDeadlines:
    """Seconds that a restore may take before it is given up; infrastructure, not task time."""

    hello: float = 5.0
    identify: float = 10.0
    warm: float = 30.0
    activate: float = 10.0


class Stopwatch:
    """Laps of the monotonic clock."""

    def __init__(self) -> None:
        self._last = time.perf_counter_ns()

    def lap(self) -> int:
        """Return the nanoseconds since the last lap."""
        now = time.perf_counter_ns()
        lap, self._last = now - self._last, now
        return lap
