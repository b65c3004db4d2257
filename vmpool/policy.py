"""Policy: how many clones to restore and how many spares to give up.

Decides from two values, the limits of a template and a census of its clones, and from nothing else.
It does not know what a clone is, who waits or how long a restore takes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vmpool.errors import InvalidRequestError

BACKOFF_FIRST = 0.1
"""Seconds before the retry after the second failure in a row; the first is retried at once."""

BACKOFF_MOST = 10.0
"""Seconds that a retry waits at most: also how long a repaired host may go unnoticed."""

_LEAST = {
    "ready": 0,
    "ready_most": 0,
    "standby": 0,
    "total": 1,
    "queue": 0,
    "parallel_restores": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a template's pool may use.

    Attributes:
        ready: Spare clones to keep restored.
        ready_most: Spares to keep at most while many clones are asked for; never fewer than
            `ready`, whatever this says.
        standby: Hypervisors to keep waiting for the next restores; they are no clones yet.
        total: Clones at most, whatever they are doing.
        queue: Callers of one tenant that may wait for a clone at most.
        parallel_restores: Restores at most at one time.
        memory_bytes: Memory for all clones together; `None` for no limit but `total`.
        clone_bytes: Memory to count for one clone, at least its guest's RAM: what it can grow to,
            not what it uses now, because a host that is out of memory kills without asking.

    Raises:
        InvalidRequestError: `invalid_limits` when not a single clone could ever be restored.
    """

    ready: int = 2
    ready_most: int = 0
    standby: int = 0
    total: int = 16
    queue: int = 256
    parallel_restores: int = 2
    memory_bytes: int | None = None
    clone_bytes: int = 0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                message = f"limit {name} is {getattr(self, name)!r}, the least is {least}"
                raise InvalidRequestError(message, code="invalid_limits")
        if self.clone_bytes < 0 or self.capacity < 1:
            raise InvalidRequestError(
                f"a clone of {self.clone_bytes} bytes is not fit for {self.memory_bytes!r} bytes",
                code="invalid_limits",
                remedy="raise the template's memory limit",
            )

    @property
    def capacity(self) -> int:
        """Clones that fit into both `total` and `memory_bytes`."""
        if self.memory_bytes is None or self.clone_bytes == 0:
            return self.total
        return min(self.total, self.memory_bytes // self.clone_bytes)

    @property
    def most_ready(self) -> int:
        """Spares that there may be."""
        return max(self.ready, self.ready_most)

    def without_spares(self) -> Limits:
        """Return the same for a pool that keeps none ready, nor anything to make one of."""
        return replace(self, ready=0, ready_most=0, standby=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """Clones of one template at one moment, each counted once, and the callers who wait.

    Attributes:
        ready: Restored and free.
        restoring: On their way.
        held: Given to a caller, or just being given.
        dying: Being killed; their memory is not free yet.
        waiting: Callers in the queue.
    """

    ready: int = 0
    restoring: int = 0
    held: int = 0
    dying: int = 0
    waiting: int = 0

    @property
    def alive(self) -> int:
        """Clones that take memory now."""
        return self.ready + self.restoring + self.held + self.dying


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to do now; when there is something to restore, there is nothing else.

    Attributes:
        restore: Restores to start.
        retire: Ready clones to kill.
        recall: Restores under way to cancel.
    """

    restore: int = 0
    retire: int = 0
    recall: int = 0


def plan(limits: Limits, census: Census) -> Plan:
    """Return the step from `census` towards a clone for every waiter and `limits.ready` spares.

    Waiters come first: a clone that one of them can have is neither retired nor recalled, however
    far lowered limits are exceeded. Restores are recalled for want of room alone, not when their
    waiter leaves; what they bring beyond the spares is retired once it is there.
    """
    surplus = census.ready - census.waiting - limits.ready
    excess = census.ready + census.restoring + census.held - limits.capacity
    retire = max(min(max(surplus, excess), census.ready - census.waiting), 0)
    coming = census.restoring - max(census.waiting - census.ready, 0)
    recall = max(min(excess - retire, coming), 0)
    if retire or recall:
        return Plan(retire=retire, recall=recall)
    missing = census.waiting + limits.ready - census.ready - census.restoring
    room = limits.capacity - census.alive
    restore = min(missing, room, limits.parallel_restores - census.restoring)
    return Plan(restore=max(restore, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Setback:
    """Failures in a row, and when to try again.

    Attributes:
        failures: How many; those before `retry_at` count as one, for they have one cause.
        retry_at: Nothing is restored before this; on the caller's clock.
    """

    failures: int = 0
    retry_at: float = float("-inf")

    def worse(self, *, now: float, jitter: float) -> Setback:
        """Return the setback after another failure; `jitter` as in `backoff`."""
        if now < self.retry_at:
            return self
        failures = self.failures + 1
        return Setback(failures=failures, retry_at=now + backoff(failures, jitter))

    def over(self) -> Setback:
        """Return the setback after a success; one that came early does not open the gate."""
        return Setback(retry_at=self.retry_at)


def backoff(failures: int, jitter: float) -> float:
    """Return the seconds to wait after `failures` in a row before anything is restored again.

    Args:
        failures: At least 1. A single one is retried at once: a restore in some thousands fails
            for no lasting reason.
        jitter: From 0 to 1; spreads pools that failed together over the upper half of the delay.
    """
    if failures <= 1:
        return 0.0
    exponent = min(failures - 2, 32)  # far beyond BACKOFF_MOST, and 2.0**exponent stays finite
    delay: float = min(BACKOFF_FIRST * 2.0**exponent, BACKOFF_MOST)
    return delay * (0.5 + jitter / 2)
