"""Supply: clones of one template that nobody holds yet, each from its restore to its end.

Decides when one is restored, retired or recalled, as `policy` says, and how many are kept, as
`demand` says; who gets which, the pool does. Every decision is one synchronous step, so that
nothing happens between a check and its act; the I/O that follows runs in tasks that it owns.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from vmpool import policy, spare
from vmpool.chores import Chores
from vmpool.demand import Demand
from vmpool.errors import GuestError, VmpoolError
from vmpool.lifecycle import CloneEnd, CloneEvent, CloneState
from vmpool.roster import Roster
from vmpool.spare import PoolClone
from vmpool.trouble import Trouble

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from vmpool.policy import Limits
    from vmpool.roster import Member
    from vmpool.waiters import Line

log = logging.getLogger(__name__)

C = TypeVar("C", bound=PoolClone)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source(Generic[C]):
    """Where clones come from, and within what bounds; `Pool` says what each means."""

    restore: Callable[[], Awaitable[C]]
    restores: asyncio.Semaphore | None
    restore_timeout: float
    kill_timeout: float
    jitter: Callable[[], float]
    at_rest: Callable[[int], None]


class Supply(Generic[C]):
    """The clones of one pool that nobody holds, and the count of all that it has.

    Args:
        name: The template's, for messages.
        limits: What the pool may use.
        line: Those who wait: a clone that comes is offered to the first.

    Attributes:
        roster: All clones of the pool, those that are held too.
        counters: Events since it was made.
        trouble: Why clones fail now.
        running: Whether it is open, and not shut.
    """

    def __init__(
        self, name: str, *, source: Source[C], limits: Limits, line: Line[Member[C]]
    ) -> None:
        self.roster: Roster[C] = Roster()
        self.counters: Counter[str] = Counter()
        self.trouble = Trouble()
        self._name = name
        self._source = source
        self._restores: AbstractAsyncContextManager[object] = source.restores or nullcontext()
        self._limits = limits
        self._line = line
        self._demand = Demand()
        self._ready: deque[Member[C]] = deque()
        self._chores = Chores(f"pool {name}")
        self.running = False
        self._retry: asyncio.TimerHandle | None = None
        self._fall: asyncio.TimerHandle | None = None

    @property
    def limits(self) -> Limits:
        """What the pool may use; changed by `resize`."""
        return self._limits

    @property
    def census(self) -> policy.Census:
        """Clones by what they are doing, and the callers who wait, now."""
        return self.roster.census(waiting=len(self._line))

    @property
    def aim(self) -> int:
        """How many spares are to be kept now."""
        limits = self._limits
        if limits.most_ready == limits.ready:
            return limits.ready
        return min(max(self._demand.spares(self._now()), limits.ready), limits.most_ready)

    # What its pool tells it, and asks of it.

    def open(self) -> None:
        """Begin to restore."""
        self.running = True
        self.rebalance()

    def resize(self, limits: Limits) -> None:
        """Change the limits; spares beyond them are killed in the background, held clones stay."""
        self._limits = limits
        self.rebalance()

    def asked(self) -> None:
        """Note that somebody asks for a clone."""
        limits = self._limits
        if limits.most_ready > limits.ready:
            self._demand.asked(
                self._now(), at_once=limits.parallel_restores, most=limits.most_ready
            )

    def take(self) -> Member[C] | None:
        """Take the youngest spare: what it touched last is still in the host's caches."""
        if not self._ready:
            return None
        member = self._ready.pop()
        self._touch(member)
        self.rebalance()
        return member

    def accept(self, member: Member[C]) -> bool:
        """Take what was offered; false when it died, or the pool closed, on the way."""
        if member.state is not CloneState.OFFERED:
            return False
        self._touch(member)
        return True

    def decline(self, member: Member[C]) -> None:
        """Take back an offer that its caller never saw.

        Nobody has resumed the clone, so it is as it was and serves the next one; to kill it would
        let a crowd of impatient callers drain the pool.
        """
        if member.state is CloneState.OFFERED:
            self.roster.step(member, CloneEvent.DECLINE)
            self._place(member)
            self.rebalance()

    def activated(self, member: Member[C]) -> bool:
        """Count a clone that woke as held; false when the pool closed meanwhile."""
        if member.state is not CloneState.ACTIVATING:
            return False
        self.roster.step(member, CloneEvent.ACTIVATED)
        self.counters["acquired"] += 1
        self.trouble.activated()
        return True

    def failed(self, error: VmpoolError) -> None:
        """Note that a clone which was there is not fit for use."""
        self.trouble.clone_failed(error, now=self._now(), jitter=self._source.jitter())

    def spoil(self, member: Member[C], end: CloneEnd) -> None:
        """Have a touched clone killed, unless the pool has closed and does so already."""
        if member.state is CloneState.ACTIVATING:
            self._doom(member, end)
            self.rebalance()

    def end(self, member: Member[C], end: CloneEnd) -> None:
        """Count out a clone that is gone; another is restored in its place."""
        self.roster.end(member, end)
        self.rebalance()

    def rebalance(self) -> None:
        """Do what the policy asks for, now or when the backoff is over."""
        if not self.running:
            return
        step = policy.plan(self._target(), self.census)
        for _ in range(step.retire):
            self._doom(self._ready.popleft(), CloneEnd.RETIRED)  # the oldest
        for _ in range(step.recall):
            self._recall(self.roster.youngest(CloneState.RESTORING))
        if step.restore == 0:
            self._stock()
            return
        if self._now() < self.trouble.retry_at:
            if self._retry is None:
                loop = asyncio.get_running_loop()
                self._retry = loop.call_at(self.trouble.retry_at, self._try_again)
            return
        for _ in range(step.restore):
            self._begin()

    def recall(self) -> None:
        """Cancel every restore."""
        for member in self.roster:
            if member.state is CloneState.RESTORING:
                self._recall(member)

    def shut(self) -> None:
        """Cancel restores, kill what nobody holds, and restore nothing any more. *Idempotent.*"""
        if not self.running:
            return
        self.running = False
        for timer in (self._retry, self._fall):
            if timer is not None:
                timer.cancel()
        self._source.at_rest(0)
        self._ready.clear()
        self.recall()
        for member in self.roster:
            if member.state in {CloneState.READY, CloneState.OFFERED, CloneState.ACTIVATING}:
                self._doom(member, CloneEnd.POOL_CLOSED)

    async def done(self) -> None:
        """Return when what was begun has ended, or after two kill timeouts."""
        await self._chores.done(within=2 * self._source.kill_timeout)

    # What takes time. Each awaits one thing and leaves the deciding to the steps below.

    async def _keep(self, member: Member[C]) -> None:
        """Restore a clone and watch it until somebody takes it."""
        began = self._now()
        try:
            async with self._restores:
                clone = await spare.restored(
                    self._source.restore, within=self._source.restore_timeout
                )
        except Exception as error:  # noqa: BLE001 - the task's top: whatever failed, try again later
            self._restore_failed(member, error)
            return
        self._demand.restored(self._now() - began)
        self._arrive(member, clone)
        if member.state is CloneState.DYING:
            return
        await clone.wait_dead()
        self._died(member)

    async def _reap(self, member: Member[C], end: CloneEnd) -> None:
        """Kill a clone. One that cannot be killed is written off, for the next start to sweep."""
        assert member.clone is not None
        try:
            await spare.killed(member.clone, within=self._source.kill_timeout)
        except Exception:
            self.counters["kill_failed"] += 1
            log.exception("pool=%s a clone could not be killed", self._name)
        self.end(member, end)

    # Steps. Each is one synchronous decision.

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _target(self) -> Limits:
        """Return the limits with as many spares as there are to be now, and look again in time."""
        aim = self.aim
        if aim == self._limits.ready:
            return self._limits
        if self._fall is None:
            falls_at = self._demand.falls_at(self._now())
            self._fall = asyncio.get_running_loop().call_at(falls_at, self._look_again)
        return replace(self._limits, ready=aim)

    def _stock(self) -> None:
        """Have hypervisors wait for the next restores, when none is under way that they delay."""
        census = self.census
        if census.restoring == census.waiting == 0:
            self._source.at_rest(self._limits.standby)

    def _look_again(self) -> None:
        self._fall = None
        self.rebalance()

    def _try_again(self) -> None:
        self._retry = None
        self.rebalance()

    def _begin(self) -> None:
        member = self.roster.begin()
        member.keeper = self._chores.begin(self._keep(member))
        member.keeper.add_done_callback(partial(self._kept, member))

    def _recall(self, member: Member[C]) -> None:
        """Cancel a restore; it counts until it has ended."""
        assert member.keeper is not None
        self.roster.step(member, CloneEvent.DOOM)
        member.keeper.cancel()

    def _kept(self, member: Member[C], _keeper: asyncio.Task[None]) -> None:
        """Count out a restore that was recalled, perhaps before its task had begun."""
        if member.state is CloneState.DYING and member.clone is None:
            self.end(member, CloneEnd.RECALLED)

    def _restore_failed(self, member: Member[C], error: Exception) -> None:
        unexpected = None if isinstance(error, VmpoolError) else error
        log.warning("pool=%s restore failed: %s", self._name, error, exc_info=unexpected)
        self.trouble.restore_failed(error, now=self._now(), jitter=self._source.jitter())
        self.end(member, CloneEnd.RESTORE_FAILED)

    def _arrive(self, member: Member[C], clone: C) -> None:
        member.clone = clone
        self.counters["restored"] += 1
        self.trouble.restored()
        if member.state is CloneState.DYING:  # recalled, and too late
            self._chores.begin(self._reap(member, CloneEnd.RETIRED))
            return
        self.roster.step(member, CloneEvent.RESTORED)
        self._place(member)
        self.rebalance()

    def _place(self, member: Member[C]) -> None:
        """Offer a ready clone to the first who waits, or keep it."""
        if self._line.offer(member):
            self.roster.step(member, CloneEvent.OFFER)
        else:
            self._ready.append(member)

    def _died(self, member: Member[C]) -> None:
        """Replace a clone that died while nobody had touched it."""
        if member.state not in {CloneState.READY, CloneState.OFFERED}:
            return
        log.warning("pool=%s a clone died while it was ready", self._name)
        if member.state is CloneState.READY:
            self._ready.remove(member)
        self.failed(GuestError("a clone died while it was ready", code="clone_died"))
        self._doom(member, CloneEnd.DIED_READY)
        self.rebalance()

    def _touch(self, member: Member[C]) -> None:
        """Begin to activate; from here on its caller sees the clone die, not its keeper."""
        assert member.keeper is not None
        self.roster.step(member, CloneEvent.TAKE)
        member.keeper.cancel()

    def _doom(self, member: Member[C], end: CloneEnd) -> None:
        """Have a clone killed; it counts until it is gone."""
        self.roster.step(member, CloneEvent.DOOM)
        if member.keeper is not None and member.keeper is not asyncio.current_task():
            member.keeper.cancel()
        self._chores.begin(self._reap(member, end))
