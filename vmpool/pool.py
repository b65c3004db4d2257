"""Pool: ready clones of one template, and those who wait for them.

Decides who gets which clone, and when one is restored or given up; how many, `policy` says. It
knows no engine, no guest and no sandbox: a clone is something that `restore` makes and that can be
activated, killed and watched.

Every decision is one synchronous step, so that nothing happens between a check and its act; the I/O
that follows runs in tasks that the pool owns.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, deque
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from vmpool import policy, spare
from vmpool.cancellation import uninterrupted
from vmpool.chores import Chores
from vmpool.errors import (
    CapacityError,
    GuestError,
    PoolBusyError,
    PoolTimeoutError,
    VmpoolError,
)
from vmpool.lifecycle import CloneEnd, CloneEvent, CloneState
from vmpool.place import Place
from vmpool.roster import Roster
from vmpool.spare import PoolClone
from vmpool.trouble import Trouble
from vmpool.waiters import Line, Waiter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from vmpool.policy import Census, Limits
    from vmpool.roster import Member

log = logging.getLogger(__name__)


C = TypeVar("C", bound=PoolClone)


class Pool(Generic[C]):
    """Clones of one template, kept ready. An async context manager; leaving it closes the pool.

    Args:
        name: The template's, for messages.
        restore: Makes a clone that rests until `activate`; leaves nothing when it raises or is
            cancelled. Whoever acquires the clone kills it; until then the pool does.
        limits: What the pool may use.
        restores: Shared by pools that together may not restore more at one time than it allows;
            a pool's own limit holds besides.
        restore_timeout: Seconds after which a restore counts as failed; a backstop, `restore` has
            deadlines of its own.
        kill_timeout: Seconds after which a kill is given up and its clone written off.
        on_acquire: Told the nanoseconds that a caller waited, queue and activation together.
        jitter: Source of numbers from 0 to 1 that spread retries.
    """

    def __init__(
        self,
        name: str,
        *,
        restore: Callable[[], Awaitable[C]],
        limits: Limits,
        restores: asyncio.Semaphore | None = None,
        restore_timeout: float = 60.0,
        kill_timeout: float = 10.0,
        on_acquire: Callable[[int], None] | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self._restore = restore
        self._limits = limits
        self._restores: AbstractAsyncContextManager[object] = restores or nullcontext()
        self._restore_timeout = restore_timeout
        self._kill_timeout = kill_timeout
        self._on_acquire = on_acquire
        self._jitter = jitter

        self._counters: Counter[str] = Counter()
        self._roster: Roster[C] = Roster()
        self._ready: deque[Member[C]] = deque()
        self._line: Line[Member[C]] = Line()
        self._chores = Chores(f"pool {name}")

        self._open = False
        self._gives = False
        self._trouble = Trouble()
        self._retry: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._open = self._gives = True
        self._rebalance()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def limits(self) -> Limits:
        """What the pool may use; changed by `resize`."""
        return self._limits

    @property
    def census(self) -> Census:
        """Clones by what they are doing, and the callers who wait, now."""
        return self._roster.census(waiting=len(self._line))

    @property
    def counters(self) -> dict[str, int]:
        """Events since the pool was made.

        `acquired`, `queued`, `refused`, `timed_out`, `restored`, `filled`, `kill_failed`, and one
        `ended_<reason>` for each `lifecycle.CloneEnd`. Every clone that was restored, or filled a
        place, is either alive in the census or in one `ended_…`; `ended_restore_failed`,
        `ended_recalled` and `ended_given_up` never were clones.
        """
        ended = {f"ended_{end.value}": self._roster.ended[end] for end in CloneEnd}
        return dict(self._counters) | ended | {"filled": self._roster.filled}

    @property
    def last_error(self) -> Exception | None:
        """Why clones fail now; `None` once one was restored, or activated, since."""
        return self._trouble.cause

    async def acquire(self, *, deadline: float, party: str = "") -> C:
        """Return an activated clone, which is then the caller's to kill and to `release`.

        When cancelled, the caller owns nothing: a clone that was offered but never touched goes
        back to the others, one whose activation had begun is killed. Await this directly; a wrapper
        that drops its result loses the clone.

        Args:
            deadline: On the loop's clock; for queue and activation together.
            party: Who shares a turn: of those who wait, parties are served one after the other,
                however many of each there are.

        Raises:
            PoolBusyError: Nothing is ready and the party's queue is full.
            PoolTimeoutError: The deadline passed. Its `__cause__` is what keeps clones from coming.
            CapacityError: `pool_closed`; the pool was closed or withdrawn, before or meanwhile.
        """
        began_ns = time.perf_counter_ns()
        enqueue = self._enqueue
        while True:
            if not self._gives:
                raise self._closed()
            if deadline <= self._loop.time():
                raise self._timed_out()
            member = self._take_ready()
            if member is None:
                member = await self._offered(enqueue(party), deadline)
            if member is not None and await self._activate(member, deadline):
                break
            enqueue = self._requeue
        assert member.clone is not None
        if self._on_acquire is not None:
            self._on_acquire(time.perf_counter_ns() - began_ns)
        return member.clone

    def reserve(self) -> Place[C]:
        """Take room for a clone that the caller makes, to fill or give up. *Not idempotent.*

        Those who wait for a clone were first: their room is not taken. Spares give way, those that
        are being restored too; until they are gone the pool has more clones than its limits say,
        but those are paused or run nobody's code.

        Raises:
            PoolBusyError: `pool_full`; with all spares gone there would be no room either.
            CapacityError: `pool_closed`.
        """
        if not self._open:
            raise self._closed()
        census = self.census
        if census.held + census.waiting >= self._limits.capacity:
            self._counters["refused"] += 1
            raise PoolBusyError(
                f"all {self._limits.capacity} clones that {self.name!r} may have are in use",
                code="pool_full",
                remedy="kill or pause a sandbox, or raise the template's limits",
            )
        place = Place(self._roster.reserve(), roster=self._roster, freed=self._rebalance)
        self._rebalance()
        return place

    def admit(self, clone: C) -> None:
        """Count a clone that runs already as held, whatever the limits say; spares give way."""
        self._roster.fill(self._roster.reserve(), clone)
        self._rebalance()

    def exchange(self, old: C, new: C) -> None:
        """Count `new` as held in place of `old`, whose holder kills it and releases nothing.

        Raises:
            ValueError: `old` is not held from this pool, or `new` is.
        """
        self._roster.exchange(self._holding(old), new)

    def release(self, clone: C) -> None:
        """Count out a clone that its holder has killed; another is restored in its place.

        Raises:
            ValueError: The clone is not held from this pool, or was released before.
        """
        self._end(self._holding(clone), CloneEnd.RELEASED)

    def resize(self, limits: Limits) -> None:
        """Change the limits; spares beyond them are killed in the background, held clones stay."""
        self._limits = limits
        self._rebalance()

    async def withdraw(self) -> None:
        """Turn waiters away, cancel restores, kill what nobody holds; return when it is gone.

        From then on there are only places: for what is held, and what descends from it.
        *Idempotent.* Goes on to its end when cancelled, and raises then; as long as `close`.
        """
        self._gives = False
        self._line.fail(self._closed)
        for member in self._roster:
            if member.state is CloneState.RESTORING:
                self._recall(member)
        self.resize(replace(self._limits, ready=0))
        await uninterrupted(self._chores.done(within=2 * self._kill_timeout))

    async def close(self) -> None:
        """Turn waiters away, cancel restores, kill what nobody holds; return when it is gone.

        Clones that are held stay their holders' and may still be released; so may places be filled.
        *Idempotent.* Goes on to its end when cancelled, and raises then; takes no longer than two
        kill timeouts.
        """
        if self._open:
            self._shut()
        await uninterrupted(self._chores.done(within=2 * self._kill_timeout))

    # What takes time. Each awaits one thing and leaves the deciding to the steps below.

    async def _offered(self, waiter: Waiter[Member[C]], deadline: float) -> Member[C] | None:
        """Wait in the queue and take what is offered; `None` when that was lost on the way."""
        expiry = self._loop.call_at(deadline, self._expire, waiter)
        try:
            member = await waiter
        except asyncio.CancelledError:
            if waiter.unseen is not None:
                self._decline(waiter.unseen)
            raise
        finally:
            expiry.cancel()
            self._line.leave(waiter)
        return member if self._accept(member) else None

    async def _activate(self, member: Member[C], deadline: float) -> bool:
        """Wake a clone for its caller; false when it failed, or the pool closed meanwhile."""
        assert member.clone is not None
        limit = asyncio.timeout_at(deadline)
        try:
            async with limit:
                await member.clone.activate()
        except VmpoolError as error:
            log.warning("pool=%s activation failed: %s", self.name, error)
            self._clone_failed(error)
            self._spoil(member, CloneEnd.ACTIVATION_FAILED)
            return False
        except BaseException as error:
            self._spoil(member, CloneEnd.ABANDONED)
            if isinstance(error, TimeoutError) and limit.expired():
                raise self._timed_out() from self.last_error
            raise
        return self._activated(member)

    async def _keep(self, member: Member[C]) -> None:
        """Restore a clone and watch it until somebody takes it."""
        try:
            async with self._restores:
                clone = await spare.restored(self._restore, within=self._restore_timeout)
        except Exception as error:  # noqa: BLE001 - the task's top: whatever failed, try again later
            self._restore_failed(member, error)
            return
        self._arrive(member, clone)
        if member.state is CloneState.DYING:
            return
        await clone.wait_dead()
        self._died(member)

    async def _reap(self, member: Member[C], end: CloneEnd) -> None:
        """Kill a clone. One that cannot be killed is written off, for the next start to sweep."""
        assert member.clone is not None
        try:
            await spare.killed(member.clone, within=self._kill_timeout)
        except Exception:
            self._counters["kill_failed"] += 1
            log.exception("pool=%s a clone could not be killed", self.name)
        self._end(member, end)

    # Steps. Each is one synchronous decision.

    def _holding(self, clone: C) -> Member[C]:
        member = self._roster.holding(clone)
        if member is None:
            raise ValueError(f"pool {self.name!r} has not given out {clone!r}")
        return member

    def _closed(self) -> CapacityError:
        return CapacityError(f"pool {self.name!r} is closed", code="pool_closed")

    def _timed_out(self) -> PoolTimeoutError:
        self._counters["timed_out"] += 1
        error = PoolTimeoutError(
            f"no clone of {self.name!r} came free before the deadline",
            remedy="wait longer, or raise the template's limits",
        )
        error.__cause__ = self.last_error
        return error

    def _enqueue(self, party: str) -> Waiter[Member[C]]:
        if self._line.count(party) >= self._limits.queue:
            self._counters["refused"] += 1
            raise PoolBusyError(
                f"no clone of {self.name!r} is ready and {self._limits.queue} callers wait already",
                remedy="try again in a moment, or raise the template's limits",
            )
        self._counters["queued"] += 1
        waiter = self._line.join(party)
        self._rebalance()
        return waiter

    def _requeue(self, party: str) -> Waiter[Member[C]]:
        """Queue a caller whose turn it was already: before all others, and never refused."""
        waiter = self._line.rejoin(party)
        self._rebalance()
        return waiter

    def _expire(self, waiter: Waiter[Member[C]]) -> None:
        if waiter.waits:
            waiter.fail(self._timed_out())

    def _rebalance(self) -> None:
        """Do what the policy asks for, now or when the backoff is over."""
        if not self._open:
            return
        step = policy.plan(self._limits, self.census)
        for _ in range(step.retire):
            self._doom(self._ready.popleft(), CloneEnd.RETIRED)  # the oldest
        for _ in range(step.recall):
            self._recall(self._roster.youngest(CloneState.RESTORING))
        if step.restore == 0:
            return
        if self._loop.time() < self._trouble.retry_at:
            if self._retry is None:
                self._retry = self._loop.call_at(self._trouble.retry_at, self._try_again)
            return
        for _ in range(step.restore):
            self._begin()

    def _try_again(self) -> None:
        self._retry = None
        self._rebalance()

    def _begin(self) -> None:
        member = self._roster.begin()
        member.keeper = self._chores.begin(self._keep(member))
        member.keeper.add_done_callback(partial(self._kept, member))

    def _recall(self, member: Member[C]) -> None:
        """Cancel a restore; it counts until it has ended."""
        assert member.keeper is not None
        self._roster.step(member, CloneEvent.DOOM)
        member.keeper.cancel()

    def _kept(self, member: Member[C], _keeper: asyncio.Task[None]) -> None:
        """Count out a restore that was recalled, perhaps before its task had begun."""
        if member.state is CloneState.DYING and member.clone is None:
            self._end(member, CloneEnd.RECALLED)

    def _restore_failed(self, member: Member[C], error: Exception) -> None:
        unexpected = None if isinstance(error, VmpoolError) else error
        log.warning("pool=%s restore failed: %s", self.name, error, exc_info=unexpected)
        self._trouble.restore_failed(error, now=self._loop.time(), jitter=self._jitter())
        self._end(member, CloneEnd.RESTORE_FAILED)

    def _arrive(self, member: Member[C], clone: C) -> None:
        member.clone = clone
        self._counters["restored"] += 1
        self._trouble.restored()
        if member.state is CloneState.DYING:  # recalled, and too late
            self._chores.begin(self._reap(member, CloneEnd.RETIRED))
            return
        self._roster.step(member, CloneEvent.RESTORED)
        self._place(member)
        self._rebalance()

    def _place(self, member: Member[C]) -> None:
        """Offer a ready clone to the first who waits, or keep it."""
        if self._line.offer(member):
            self._roster.step(member, CloneEvent.OFFER)
        else:
            self._ready.append(member)

    def _died(self, member: Member[C]) -> None:
        """Replace a clone that died while nobody had touched it."""
        if member.state not in {CloneState.READY, CloneState.OFFERED}:
            return
        log.warning("pool=%s a clone died while it was ready", self.name)
        if member.state is CloneState.READY:
            self._ready.remove(member)
        self._clone_failed(GuestError("a clone died while it was ready", code="clone_died"))
        self._doom(member, CloneEnd.DIED_READY)
        self._rebalance()

    def _take_ready(self) -> Member[C] | None:
        """Take the youngest spare: what it touched last is still in the host's caches."""
        if not self._ready:
            return None
        member = self._ready.pop()
        self._touch(member)
        self._rebalance()
        return member

    def _accept(self, member: Member[C]) -> bool:
        """Take what was offered; false when it died, or the pool closed, on the way."""
        if member.state is not CloneState.OFFERED:
            return False
        self._touch(member)
        return True

    def _decline(self, member: Member[C]) -> None:
        """Take back an offer that its caller never saw.

        Nobody has resumed the clone, so it is as it was and serves the next one; to kill it would
        let a crowd of impatient callers drain the pool.
        """
        if member.state is CloneState.OFFERED:
            self._roster.step(member, CloneEvent.DECLINE)
            self._place(member)
            self._rebalance()

    def _touch(self, member: Member[C]) -> None:
        """Begin to activate; from here on its caller sees the clone die, not its keeper."""
        assert member.keeper is not None
        self._roster.step(member, CloneEvent.TAKE)
        member.keeper.cancel()

    def _activated(self, member: Member[C]) -> bool:
        if member.state is not CloneState.ACTIVATING:
            return False
        self._roster.step(member, CloneEvent.ACTIVATED)
        self._counters["acquired"] += 1
        self._trouble.activated()
        return True

    def _spoil(self, member: Member[C], end: CloneEnd) -> None:
        """Have a touched clone killed, unless the pool has closed and does so already."""
        if member.state is CloneState.ACTIVATING:
            self._doom(member, end)
            self._rebalance()

    def _clone_failed(self, error: VmpoolError) -> None:
        self._trouble.clone_failed(error, now=self._loop.time(), jitter=self._jitter())

    def _doom(self, member: Member[C], end: CloneEnd) -> None:
        """Have a clone killed; it counts until it is gone."""
        self._roster.step(member, CloneEvent.DOOM)
        if member.keeper is not None and member.keeper is not asyncio.current_task():
            member.keeper.cancel()
        self._chores.begin(self._reap(member, end))

    def _end(self, member: Member[C], end: CloneEnd) -> None:
        self._roster.end(member, end)
        self._rebalance()

    def _shut(self) -> None:
        self._open = self._gives = False
        if self._retry is not None:
            self._retry.cancel()
        self._line.fail(self._closed)
        self._ready.clear()
        for member in self._roster:
            if member.state is CloneState.RESTORING:
                self._recall(member)
            elif member.state not in {CloneState.HELD, CloneState.RESERVED, CloneState.DYING}:
                self._doom(member, CloneEnd.POOL_CLOSED)
