"""Pool: ready clones of one template, and those who wait for them.

Decides who gets which clone, and who is turned away; `supply` restores and ends them. It
knows no engine, no guest and no sandbox: a clone is something that `restore` makes and that can be
activated, killed and watched.

Every decision is one synchronous step, so that nothing happens between a check and its act.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from vmpool.cancellation import uninterrupted
from vmpool.errors import CapacityError, PoolBusyError, PoolTimeoutError, VmpoolError
from vmpool.lifecycle import CloneEnd
from vmpool.place import Place
from vmpool.spare import PoolClone
from vmpool.supply import Source, Supply
from vmpool.waiters import Line, Waiter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
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
        on_rest: Told, when nothing is being restored and nobody waits, how many hypervisors are to
            wait for the next restores, as `Limits.standby`; and 0 when the pool closes.
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
        on_rest: Callable[[int], None] = lambda _: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self._on_acquire = on_acquire
        self._line: Line[Member[C]] = Line()
        source = Source(
            restore=restore,
            restores=restores,
            restore_timeout=restore_timeout,
            kill_timeout=kill_timeout,
            jitter=jitter,
            at_rest=on_rest,
        )
        self._supply = Supply(name, source=source, limits=limits, line=self._line)
        self._counters = self._supply.counters
        self._roster = self._supply.roster
        self._gives = False

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._gives = True
        self._supply.open()
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
        return self._supply.limits

    @property
    def aim(self) -> int:
        """How many spares it keeps now: `Limits.ready`, or more while many are asked for."""
        return self._supply.aim

    @property
    def census(self) -> Census:
        """Clones by what they are doing, and the callers who wait, now."""
        return self._supply.census

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
        return self._supply.trouble.cause

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
        self._supply.asked()
        while True:
            if not self._gives:
                raise self._closed()
            if deadline <= self._loop.time():
                raise self._timed_out()
            member = self._supply.take()
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
        if not self._supply.running:
            raise self._closed()
        census = self.census
        if census.held + census.waiting >= self.limits.capacity:
            self._counters["refused"] += 1
            raise PoolBusyError(
                f"all {self.limits.capacity} clones that {self.name!r} may have are in use",
                code="pool_full",
                remedy="kill or pause a sandbox, or raise the template's limits",
            )
        place = Place(self._roster.reserve(), roster=self._roster, freed=self._supply.rebalance)
        self._supply.rebalance()
        return place

    def admit(self, clone: C) -> None:
        """Count a clone that runs already as held, whatever the limits say; spares give way."""
        self._roster.fill(self._roster.reserve(), clone)
        self._supply.rebalance()

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
        self._supply.end(self._holding(clone), CloneEnd.RELEASED)

    def resize(self, limits: Limits) -> None:
        """Change the limits; spares beyond them are killed in the background, held clones stay."""
        self._supply.resize(limits)

    async def withdraw(self) -> None:
        """Turn waiters away, cancel restores, kill what nobody holds; return when it is gone.

        From then on there are only places: for what is held, and what descends from it.
        *Idempotent.* Goes on to its end when cancelled, and raises then; as long as `close`.
        """
        self._gives = False
        self._line.fail(self._closed)
        self._supply.recall()
        self.resize(self.limits.without_spares())
        await uninterrupted(self._supply.done())

    async def close(self) -> None:
        """Turn waiters away, cancel restores, kill what nobody holds; return when it is gone.

        Clones that are held stay their holders' and may still be released; so may places be filled.
        *Idempotent.* Goes on to its end when cancelled, and raises then; takes no longer than two
        kill timeouts.
        """
        self._gives = False
        self._line.fail(self._closed)
        self._supply.shut()
        await uninterrupted(self._supply.done())

    # What takes time. Each awaits one thing and leaves the deciding to the steps below.

    async def _offered(self, waiter: Waiter[Member[C]], deadline: float) -> Member[C] | None:
        """Wait in the queue and take what is offered; `None` when that was lost on the way."""
        expiry = self._loop.call_at(deadline, self._expire, waiter)
        try:
            member = await waiter
        except asyncio.CancelledError:
            if waiter.unseen is not None:
                self._supply.decline(waiter.unseen)
            raise
        finally:
            expiry.cancel()
            self._line.leave(waiter)
        return member if self._supply.accept(member) else None

    async def _activate(self, member: Member[C], deadline: float) -> bool:
        """Wake a clone for its caller; false when it failed, or the pool closed meanwhile."""
        assert member.clone is not None
        limit = asyncio.timeout_at(deadline)
        try:
            async with limit:
                await member.clone.activate()
        except VmpoolError as error:
            log.warning("pool=%s activation failed: %s", self.name, error)
            self._supply.failed(error)
            self._supply.spoil(member, CloneEnd.ACTIVATION_FAILED)
            return False
        except BaseException as error:
            self._supply.spoil(member, CloneEnd.ABANDONED)
            if isinstance(error, TimeoutError) and limit.expired():
                raise self._timed_out() from self.last_error
            raise
        return self._supply.activated(member)

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
        if self._line.count(party) >= self.limits.queue:
            self._counters["refused"] += 1
            raise PoolBusyError(
                f"no clone of {self.name!r} is ready and {self.limits.queue} callers wait already",
                remedy="try again in a moment, or raise the template's limits",
            )
        self._counters["queued"] += 1
        waiter = self._line.join(party)
        self._supply.rebalance()
        return waiter

    def _requeue(self, party: str) -> Waiter[Member[C]]:
        """Queue a caller whose turn it was already: before all others, and never refused."""
        waiter = self._line.rejoin(party)
        self._supply.rebalance()
        return waiter

    def _expire(self, waiter: Waiter[Member[C]]) -> None:
        if waiter.waits:
            waiter.fail(self._timed_out())
