"""Quotas: what each tenant uses now, what it may, and who is refused for it.

What is there is counted where it is, and never here: nothing has to be given back when it goes, on
no path. Only what is on its way is counted here, from the asking until it is there or came to
nothing. The check and the counting are one synchronous step.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from vmpool.errors import QuotaError
from vmpool.quota import Bucket, Excess, Quota, Usage, excess
from vmpool.store import LOCAL

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Awaitable, Callable

    from vmpool.metrics import Metrics

RECENT_SECONDS = 2.0
"""How long what the journal said of tenants is believed: asking costs a change of threads."""


class Reservation:
    """What is on its way to a tenant. A context manager, which gives it back."""

    def __init__(self, coming: dict[str, Usage], owner: str, demand: Usage) -> None:
        self._coming = coming
        self._owner = owner
        self._demand: Usage | None = demand
        coming[owner] = coming.get(owner, Usage()) + demand

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back()

    def give_back(self) -> None:
        """Count it no longer: it came to nothing, or is counted where it is. *Idempotent.*"""
        demand, self._demand = self._demand, None
        if demand is None:
            return
        left = self._coming.get(self._owner, Usage()) - demand
        if left == Usage():
            self._coming.pop(self._owner, None)  # another of nothing may have gone before
        else:
            self._coming[self._owner] = left


class Quotas:
    """The quotas of all tenants of a host.

    Args:
        standard: Of every tenant but the operator's own, which has no limits.
        overrides: Tells what differs, by tenant's id; as `store.Tenants.quotas`.
        now: Seconds.
    """

    def __init__(
        self,
        standard: Quota,
        overrides: Callable[[], Awaitable[dict[str, dict[str, int | None]]]],
        metrics: Metrics,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._standard = standard
        self._ask = overrides
        self._metrics = metrics
        self._now = now
        self._overrides: dict[str, dict[str, int | None]] = {}
        self._asked_at = float("-inf")
        self._counts: list[Callable[[str], Usage]] = []
        self._coming: dict[str, Usage] = {}
        self._buckets: dict[str, Bucket] = {}

    def count(self, used: Callable[[str], Usage]) -> None:
        """Count what `used` tells for a tenant's id from now on."""
        self._counts.append(used)

    async def refresh(self) -> None:
        """Learn what was changed by the command line; asks once in `RECENT_SECONDS`.

        Raises:
            StoreError, DiskFullError: The journal cannot be read.
        """
        if self._now() - self._asked_at < RECENT_SECONDS:
            return
        self._overrides = await self._ask()
        self._asked_at = self._now()

    def of(self, owner: str) -> Quota:
        """Return what a tenant may have."""
        standard = Quota() if owner == LOCAL else self._standard
        return standard.but(self._overrides.get(owner, {}))

    def used(self, owner: str) -> Usage:
        """Return what a tenant has, and what is on its way to it."""
        coming = self._coming.get(owner, Usage())
        return Usage.total([coming, *(count(owner) for count in self._counts)])

    def recent_creates(self, owner: str) -> int:
        """Return how much of a tenant's creates a minute is used up; 0 where none are counted."""
        per_minute, bucket = self.of(owner).creates_per_minute, self._buckets.get(owner)
        if per_minute is None or bucket is None:
            return 0
        return bucket.used(per_minute=per_minute, now=self._now())

    def take(self, owner: str, demand: Usage) -> Reservation:
        """Count as on its way what a tenant asks for, until that is given back.

        Raises:
            QuotaError: It is more than is left.
        """
        over = excess(self.of(owner), self.used(owner), demand)
        if over is not None:
            raise self._refusal(over)
        return Reservation(self._coming, owner, demand)

    def take_each(
        self, undo: contextlib.ExitStack, owner: str, share: Usage, count: int
    ) -> list[Reservation]:
        """Take a share `count` times, or not at all; `undo` gives back what nobody did before.

        Raises:
            QuotaError: As `take`.
        """
        self.take(owner, Usage.total([share] * count)).give_back()
        return [undo.enter_context(self.take(owner, share)) for _ in range(count)]

    def pace(self, owner: str, count: int = 1) -> None:
        """Count something that a tenant asks for against its creates a minute.

        Asked last: who is refused for another reason has not used any up.

        Raises:
            QuotaError: It comes too soon.
        """
        per_minute = self.of(owner).creates_per_minute
        if per_minute is None:
            self._buckets.pop(owner, None)
            return
        now = self._now()
        bucket = self._buckets.get(owner, Bucket(tokens=per_minute, at=now))
        match bucket.take(count, per_minute=per_minute, now=now):
            case Bucket() as left:
                self._buckets[owner] = left
            case wait:
                used = bucket.used(per_minute=per_minute, now=now)
                over = Excess(
                    resource="creates_per_minute", used=used, asked=count, limit=per_minute
                )
                raise self._refusal(over, wait)

    def _refusal(self, over: Excess, wait: float = 1.0) -> QuotaError:
        self._metrics.quota_refused(over.resource)
        return QuotaError(
            f"{over.asked} more of {over.resource} is over the tenant's quota:"
            f" {over.used} of {over.limit} are used",
            resource=over.resource,
            used=over.used,
            limit=over.limit,
            retry_after=wait,
            remedy="end, pause or remove something; or have the operator raise the limit:"
            f" vmpool tenant set TENANT --{over.resource.replace('_', '-')} N",
        )
