"""Nobody gets a dead clone, nobody's clone is lost, and the pool ends with nothing left.

All in virtual time: `settle` lets everything happen that can, `pass_time` moves the clock.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from tests.virtual_time import pass_time, settle, virtual
from vmpool.errors import (
    CapacityError,
    EngineError,
    GuestError,
    PoolBusyError,
    PoolTimeoutError,
    VmpoolError,
)
from vmpool.lifecycle import CloneEnd
from vmpool.policy import BACKOFF_MOST, Census, Limits
from vmpool.pool import Pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SOON = 5.0
ONE = Limits(ready=0, total=1, queue=10)


class Clone:
    """A clone that records what is done to it and fails when it is told to."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.activations = 0
        self.activation_error: VmpoolError | None = None
        self.activation_gate = asyncio.Event()
        self.activation_gate.set()
        self.kill_error: Exception | None = None
        self.kill_gate = asyncio.Event()
        self.kill_gate.set()
        self.dead = asyncio.Event()

    def __repr__(self) -> str:
        return f"<clone {self.number}>"

    async def activate(self) -> None:
        self.activations += 1
        if self.dead.is_set():
            raise GuestError("the clone is dead")
        await self.activation_gate.wait()
        if self.activation_error is not None:
            raise self.activation_error

    async def kill(self) -> None:
        if self.kill_error is not None:
            raise self.kill_error
        await self.kill_gate.wait()
        self.dead.set()

    async def wait_dead(self) -> None:
        await self.dead.wait()

    def die(self) -> None:
        self.dead.set()


class Maker:
    """Makes clones, at once or when told to, and knows all that it made."""

    def __init__(self) -> None:
        self.made: list[Clone] = []
        self.running = 0
        self.most_running = 0
        self.attempts: list[float] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.prepare: Callable[[Clone], None] = lambda _: None
        self.seconds = 0.0

    async def __call__(self) -> Clone:
        self.attempts.append(asyncio.get_running_loop().time())
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await self.gate.wait()
            await pass_time(self.seconds)
            if self.error is not None:
                raise self.error
            clone = Clone(len(self.made))
            self.prepare(clone)
            self.made.append(clone)
            return clone
        finally:
            self.running -= 1

    @property
    def alive(self) -> list[Clone]:
        return [clone for clone in self.made if not clone.dead.is_set()]


def pool_of(maker: Callable[[], Awaitable[Clone]], limits: Limits) -> Pool[Clone]:
    return Pool("python", restore=maker, limits=limits, jitter=lambda: 1.0)


def soon(seconds: float = SOON) -> float:
    return asyncio.get_running_loop().time() + seconds


def acquiring(pool: Pool[Clone], seconds: float = SOON) -> asyncio.Task[Clone]:
    return asyncio.create_task(pool.acquire(deadline=soon(seconds)))


async def end(pool: Pool[Clone], clone: Clone) -> None:
    """Do what a holder does in the end."""
    await clone.kill()
    pool.release(clone)


async def cancelled(task: asyncio.Task[Clone]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def offer(maker: Maker) -> None:
    """Let one clone arrive; return when it is offered and its caller has not woken yet.

    Who is woken first runs first: this function, by the maker, and then the caller, by the pool.
    """
    arrived = asyncio.get_running_loop().create_future()
    maker.prepare = lambda _: arrived.set_result(None)
    maker.gate.set()
    await arrived
    maker.prepare = lambda _: None


# Hand-over.


@virtual
async def test_a_cancelled_waiter_gives_its_clone_back() -> None:
    maker = Maker()
    maker.gate.clear()
    async with pool_of(maker, Limits(ready=1, total=1)) as pool:
        caller = acquiring(pool)
        await settle()
        await offer(maker)
        assert pool.census == Census(held=1)
        await cancelled(caller)
        assert maker.made[0].activations == 0

        clone = await pool.acquire(deadline=soon())
        assert clone is maker.made[0]
        await end(pool, clone)
    assert maker.alive == []


@virtual
async def test_a_clone_given_back_goes_to_the_next_who_waits() -> None:
    maker = Maker()
    maker.gate.clear()
    async with pool_of(maker, ONE) as pool:
        first, second = acquiring(pool), acquiring(pool)
        await settle()
        await offer(maker)
        await cancelled(first)
        assert await second is maker.made[0]
        await end(pool, await second)


@virtual
async def test_a_caller_cancelled_while_its_clone_wakes_has_it_killed() -> None:
    maker = Maker()
    maker.prepare = lambda clone: clone.activation_gate.clear()
    async with pool_of(maker, ONE) as pool:
        caller = acquiring(pool)
        await settle()
        assert maker.made[0].activations == 1
        await cancelled(caller)
        await settle()
        assert maker.alive == []
        assert pool.counters[f"ended_{CloneEnd.ABANDONED.value}"] == 1
        assert pool.census == Census()


@virtual
async def test_a_waiter_cancelled_in_the_queue_gets_nothing_and_the_next_is_served() -> None:
    maker = Maker()
    maker.gate.clear()
    async with pool_of(maker, ONE) as pool:
        first, second = acquiring(pool), acquiring(pool)
        await settle()
        first.cancel()
        maker.gate.set()
        assert await second is maker.made[0]
        assert first.cancelled()
        await end(pool, await second)


@virtual
async def test_waiters_are_served_in_the_order_in_which_they_came() -> None:
    maker = Maker()
    served: list[int] = []
    async with pool_of(maker, ONE) as pool:

        async def caller(number: int) -> None:
            clone = await pool.acquire(deadline=soon())
            served.append(number)
            await end(pool, clone)

        async with asyncio.TaskGroup() as callers:
            for number in range(6):
                callers.create_task(caller(number))
    assert served == list(range(6))


@virtual
async def test_a_ready_clone_is_given_at_once_and_replaced() -> None:
    maker = Maker()
    async with pool_of(maker, Limits(ready=2, total=4)) as pool:
        await settle()
        assert pool.census == Census(ready=2)
        clone = await pool.acquire(deadline=soon())
        assert clone.activations == 1
        await settle()
        assert pool.census == Census(ready=2, held=1)
        await end(pool, clone)
    assert maker.alive == []


@virtual
async def test_a_clone_is_given_once() -> None:
    maker = Maker()
    async with pool_of(maker, Limits(ready=3, total=8)) as pool:
        clones = await asyncio.gather(*(pool.acquire(deadline=soon()) for _ in range(8)))
        assert len(set(clones)) == 8
        assert all(clone.activations == 1 for clone in clones)
        for clone in clones:
            await end(pool, clone)


@virtual
async def test_only_what_is_held_can_be_released_and_only_once() -> None:
    maker = Maker()
    async with pool_of(maker, ONE) as pool:
        clone = await pool.acquire(deadline=soon())
        with pytest.raises(ValueError, match="has not given out"):
            pool.release(Clone(99))
        await end(pool, clone)
        with pytest.raises(ValueError, match="has not given out"):
            pool.release(clone)


# Limits and deadlines.


@virtual
async def test_a_full_queue_turns_callers_away() -> None:
    maker = Maker()
    maker.gate.clear()
    async with pool_of(maker, Limits(ready=0, total=1, queue=2)) as pool:
        waiting = [acquiring(pool), acquiring(pool)]
        await settle()
        with pytest.raises(PoolBusyError) as caught:
            await pool.acquire(deadline=soon())
        assert caught.value.remedy
        for task in waiting:
            await cancelled(task)
        late = acquiring(pool)
        await settle()
        assert pool.census.waiting == 1
        await cancelled(late)


@virtual
async def test_a_waiter_is_told_at_its_deadline_and_not_before() -> None:
    maker = Maker()
    maker.gate.clear()
    async with pool_of(maker, ONE) as pool:
        caller = acquiring(pool, 3.0)
        await pass_time(2.9)
        assert not caller.done()
        with pytest.raises(PoolTimeoutError):
            await caller
        assert asyncio.get_running_loop().time() == pytest.approx(3.0)
        assert pool.census.waiting == 0


@virtual
async def test_a_deadline_that_has_passed_takes_no_clone() -> None:
    maker = Maker()
    async with pool_of(maker, Limits(ready=1, total=1)) as pool:
        await settle()
        with pytest.raises(PoolTimeoutError):
            await pool.acquire(deadline=soon(0.0))
        assert pool.census == Census(ready=1)


@virtual
async def test_a_clone_that_does_not_wake_by_the_deadline_is_killed() -> None:
    maker = Maker()
    maker.prepare = lambda clone: clone.activation_gate.clear()
    async with pool_of(maker, ONE) as pool:
        with pytest.raises(PoolTimeoutError):
            await pool.acquire(deadline=soon())
        await settle()
        assert maker.alive == []


@virtual
async def test_no_more_clones_live_than_the_limits_allow() -> None:
    maker = Maker()
    maker.seconds = 0.1
    most = 0
    async with pool_of(maker, Limits(ready=2, total=3, parallel_restores=2)) as pool:

        async def caller() -> None:
            nonlocal most
            clone = await pool.acquire(deadline=soon(100.0))
            most = max(most, len(maker.alive))
            await pass_time(1.0)
            await end(pool, clone)

        async with asyncio.TaskGroup() as callers:
            for _ in range(20):
                callers.create_task(caller())
    assert most == 3
    assert maker.most_running == 2


@virtual
async def test_a_dying_clone_counts_until_it_is_gone() -> None:
    maker = Maker()
    maker.prepare = lambda clone: clone.kill_gate.clear()
    async with pool_of(maker, Limits(ready=1, total=1)) as pool:
        await settle()
        maker.made[0].activation_error = GuestError("no answer")
        caller = acquiring(pool)
        await settle()
        assert pool.census == Census(dying=1, waiting=1)
        assert maker.running == 0
        maker.made[0].kill_gate.set()
        clone = await caller
        assert clone is maker.made[1]
        clone.kill_gate.set()
        await end(pool, clone)
        await settle()
        maker.made[2].kill_gate.set()


@virtual
async def test_pools_can_share_a_limit_on_restores() -> None:
    maker = Maker()
    maker.gate.clear()
    shared = asyncio.Semaphore(2)
    limits = Limits(ready=3, total=3, parallel_restores=3)
    one = Pool("one", restore=maker, limits=limits, restores=shared)
    two = Pool("two", restore=maker, limits=limits, restores=shared)
    async with one, two:
        await settle()
        assert maker.running == 2
        maker.gate.set()
        await settle()
        assert (one.census, two.census) == (Census(ready=3), Census(ready=3))
    assert maker.most_running == 2


@virtual
async def test_lowered_limits_retire_spares_and_raised_ones_restore_more() -> None:
    maker = Maker()
    async with pool_of(maker, Limits(ready=4, total=8)) as pool:
        await settle()
        pool.resize(Limits(ready=1, total=8))
        await settle()
        assert pool.census == Census(ready=1)
        assert maker.alive == [maker.made[3]]
        pool.resize(Limits(ready=3, total=8))
        await settle()
        assert pool.census == Census(ready=3)


# Failures.


@virtual
async def test_a_clone_that_dies_while_ready_is_replaced_at_once() -> None:
    maker = Maker()
    async with pool_of(maker, Limits(ready=2, total=2)) as pool:
        await settle()
        maker.made[1].die()
        await settle()
        assert pool.census == Census(ready=2)
        first, second = [await pool.acquire(deadline=soon()) for _ in range(2)]
        assert maker.made[1] not in {first, second}
        assert pool.counters[f"ended_{CloneEnd.DIED_READY.value}"] == 1
        await end(pool, first)
        await end(pool, second)


@virtual
async def test_a_clone_that_dies_between_offer_and_waking_is_not_given() -> None:
    maker = Maker()
    maker.gate.clear()
    async with pool_of(maker, ONE) as pool:
        first, second = acquiring(pool), acquiring(pool)
        await settle()
        maker.prepare = lambda clone: clone.die() if clone.number == 0 else None
        maker.gate.set()
        clone = await first
        assert clone is maker.made[1]
        assert not second.done()
        await end(pool, clone)
        await end(pool, await second)


@virtual
async def test_a_clone_that_does_not_wake_is_killed_and_the_next_one_tried() -> None:
    maker = Maker()
    async with pool_of(maker, Limits(ready=2, total=3)) as pool:
        await settle()
        maker.made[1].activation_error = GuestError("no answer")
        clone = await pool.acquire(deadline=soon())
        assert clone is maker.made[0]
        await settle()
        assert maker.made[1].dead.is_set()
        assert pool.counters[f"ended_{CloneEnd.ACTIVATION_FAILED.value}"] == 1
        await end(pool, clone)


@virtual
async def test_failing_restores_back_off_and_never_stop() -> None:
    maker = Maker()
    maker.error = EngineError("no such file")
    async with pool_of(maker, Limits(ready=1, total=1)) as pool:
        await pass_time(100.0)
        gaps = [b - a for a, b in zip(maker.attempts, maker.attempts[1:], strict=False)]
        assert gaps[:4] == pytest.approx([0.0, 0.1, 0.2, 0.4])
        assert gaps[-1] == pytest.approx(BACKOFF_MOST)
        assert pool.last_error is maker.error
        maker.error = None
        await pass_time(BACKOFF_MOST)
        assert pool.census == Census(ready=1)
        assert pool.last_error is None


@virtual
async def test_restores_that_fail_together_count_as_one_failure() -> None:
    maker = Maker()
    maker.error = EngineError("no such file")
    async with pool_of(maker, Limits(ready=8, total=8, parallel_restores=8)):
        await pass_time(0.05)
        assert len(maker.attempts) <= 24
        await pass_time(0.1)
        assert len(maker.attempts) > 8


@virtual
async def test_clones_that_cannot_be_woken_do_not_make_the_pool_spin() -> None:
    maker = Maker()
    error = GuestError("no answer")

    def spoil(clone: Clone) -> None:
        clone.activation_error = error

    maker.prepare = spoil
    async with pool_of(maker, Limits(ready=1, total=2)) as pool:
        with pytest.raises(PoolTimeoutError) as caught:
            await pool.acquire(deadline=soon(20.0))
        assert caught.value.__cause__ is error
        assert len(maker.made) < 20


@virtual
async def test_clones_that_die_once_restored_do_not_make_the_pool_spin() -> None:
    maker = Maker()
    maker.prepare = Clone.die
    async with pool_of(maker, Limits(ready=1, total=2)) as pool:
        await pass_time(20.0)
        assert 5 < len(maker.made) < 20
        assert isinstance(pool.last_error, GuestError)


@virtual
async def test_a_waiter_that_times_out_learns_what_kept_clones_from_coming() -> None:
    maker = Maker()
    maker.error = EngineError("no such file")
    async with pool_of(maker, ONE) as pool:
        with pytest.raises(PoolTimeoutError) as caught:
            await pool.acquire(deadline=soon())
        assert caught.value.__cause__ is maker.error


@virtual
async def test_a_restore_that_hangs_is_given_up() -> None:
    maker = Maker()
    maker.gate.clear()
    async with pool_of(maker, ONE) as pool:
        with pytest.raises(PoolTimeoutError) as caught:
            await pool.acquire(deadline=soon(61.0))
        assert isinstance(caught.value.__cause__, GuestError)
        assert caught.value.__cause__.error_code == "restore_timeout"
        assert len(maker.attempts) == 2


@virtual
async def test_an_error_that_nobody_foresaw_in_a_restore_does_not_stop_the_pool() -> None:
    maker = Maker()
    maker.error = ZeroDivisionError()
    async with pool_of(maker, Limits(ready=1, total=1)) as pool:
        await pass_time(1.0)
        maker.error = None
        clone = await pool.acquire(deadline=soon())
        await end(pool, clone)


@virtual
async def test_a_clone_that_cannot_be_killed_is_written_off_and_counted() -> None:
    maker = Maker()
    async with pool_of(maker, Limits(ready=1, total=1)) as pool:
        await settle()
        maker.made[0].kill_error = OSError("no")
        maker.made[0].activation_error = GuestError("no answer")
        clone = await pool.acquire(deadline=soon())
        assert clone is maker.made[1]
        assert pool.counters["kill_failed"] == 1
        await end(pool, clone)


# Closing.


@virtual
async def test_a_closing_pool_turns_everybody_away_and_leaves_nothing() -> None:
    maker = Maker()
    pool = pool_of(maker, Limits(ready=2, total=3))
    async with pool:
        held = [await pool.acquire(deadline=soon()) for _ in range(3)]
        waiting = acquiring(pool)
        await settle()
    with pytest.raises(CapacityError) as caught:
        await waiting
    assert caught.value.error_code == "pool_closed"
    with pytest.raises(CapacityError, match="closed"):
        await pool.acquire(deadline=soon())
    assert maker.alive == held
    assert pool.census == Census(held=3)
    for clone in held:
        await end(pool, clone)
    assert pool.census == Census()


@virtual
async def test_closing_cancels_restores_even_such_as_have_not_begun() -> None:
    maker = Maker()
    maker.gate.clear()
    pool = pool_of(maker, Limits(ready=2, total=3))
    async with pool:
        pass  # the tasks exist, and none has taken a step
    assert pool.census == Census()
    async with pool_of(maker, Limits(ready=2, total=3)) as other:
        await settle()
        assert maker.running == 2
    assert maker.running == 0
    assert other.census == Census()


@virtual
async def test_closing_kills_a_clone_that_is_waking_and_tells_its_caller() -> None:
    maker = Maker()
    maker.prepare = lambda clone: clone.activation_gate.clear()
    async with pool_of(maker, ONE) as pool:
        caller = acquiring(pool)
        await settle()
    assert maker.alive == []
    maker.made[0].activation_gate.set()
    with pytest.raises(CapacityError) as caught:
        await caller
    assert caught.value.error_code == "pool_closed"


@virtual
async def test_closing_takes_back_a_clone_that_was_offered_and_not_taken() -> None:
    maker = Maker()
    maker.gate.clear()
    pool = pool_of(maker, ONE)
    async with pool:
        caller = acquiring(pool)
        await settle()
        await offer(maker)
    with pytest.raises(CapacityError):
        await caller
    assert maker.alive == []
    assert maker.made[0].activations == 0


@virtual
async def test_a_restore_that_ignores_cancellation_has_its_clone_killed() -> None:
    made: list[Clone] = []

    async def stubborn() -> Clone:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            made.append(Clone(0))
        return made[0]

    async with pool_of(stubborn, ONE) as pool:
        caller = acquiring(pool)
        await settle()
    assert made[0].dead.is_set()
    with pytest.raises(CapacityError):
        await caller


@virtual
async def test_closing_goes_on_when_it_is_cancelled() -> None:
    maker = Maker()
    maker.prepare = lambda clone: clone.kill_gate.clear()
    pool = pool_of(maker, Limits(ready=1, total=1))
    await pool.__aenter__()
    await settle()
    closing = asyncio.create_task(pool.close())
    await settle()
    closing.cancel()
    await settle()
    assert not closing.done()
    maker.made[0].kill_gate.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert maker.alive == []


@virtual
async def test_closing_ends_although_a_clone_cannot_be_killed() -> None:
    maker = Maker()
    maker.prepare = lambda clone: clone.kill_gate.clear()
    async with pool_of(maker, Limits(ready=1, total=1)) as pool:
        await settle()
    assert pool.counters["kill_failed"] == 1
    assert pool.census == Census()


# All at once.


class Weather:
    """Bad luck for clones and callers, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.maker = Maker()
        self.maker.prepare = self.spoil
        self.holds: set[Clone] = set()
        self.callers: set[asyncio.Task[None]] = set()

    def happens(self, probability: float) -> bool:
        return self.chance.random() < probability

    async def restore(self) -> Clone:
        await pass_time(self.chance.choice([0.0, 0.0, 0.01, 0.2]))
        if self.happens(0.05):
            raise EngineError("bad luck")
        return await self.maker()

    def spoil(self, clone: Clone) -> None:
        loop = asyncio.get_running_loop()
        if self.happens(0.05):
            clone.activation_error = GuestError("no answer")
        if self.happens(0.05):
            loop.call_later(self.chance.random(), clone.die)
        if self.happens(0.3):
            clone.activation_gate.clear()
            loop.call_later(self.chance.choice([0.0, 0.005, 0.05]), clone.activation_gate.set)

    async def call(self, pool: Pool[Clone]) -> None:
        """Acquire, hold and end a clone, or fail in one of the ways in which callers do."""
        try:
            clone = await pool.acquire(deadline=soon(self.chance.choice([0.01, 1.0, 30.0])))
        except CapacityError:
            return
        assert clone not in self.holds
        assert clone.activations == 1
        self.holds.add(clone)
        try:
            await pass_time(self.chance.random())
        finally:
            self.holds.discard(clone)
            clone.die()
            pool.release(clone)

    async def turn(self, pool: Pool[Clone]) -> None:
        """Send one more caller, and let something else happen."""
        caller = asyncio.create_task(self.call(pool))
        self.callers.add(caller)
        caller.add_done_callback(self.callers.discard)
        if self.happens(0.4):
            self.chance.choice(list(self.callers)).cancel()
        idle = [clone for clone in self.maker.alive[-9:] if clone not in self.holds]
        if idle and self.happens(0.05):
            self.chance.choice(idle).die()
        if self.happens(0.7):
            await pass_time(self.chance.choice([0.0, 0.0, 0.001, 0.05]))


@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_callers_cancelled_at_random_lose_no_clone(seed: int) -> None:
    count_clones_after_thousands_of_callers(Weather(seed))


@virtual
async def count_clones_after_thousands_of_callers(weather: Weather) -> None:
    async with pool_of(weather.restore, Limits(ready=3, total=9, queue=20)) as pool:
        for turn in range(3000):
            if turn % 500 == 499:
                pool.resize(Limits(ready=turn // 500, total=9, queue=20, parallel_restores=3))
            await weather.turn(pool)
            assert pool.census.alive <= 9
        outcomes = await asyncio.gather(*weather.callers, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {type(None), asyncio.CancelledError}
        await pass_time(60.0)
        assert pool.census == Census(ready=pool.limits.ready)
    assert pool.census == Census()
    assert weather.maker.alive == []
    counters = pool.counters
    assert counters.pop(f"ended_{CloneEnd.RESTORE_FAILED.value}") > 0
    assert counters["acquired"] == counters[f"ended_{CloneEnd.RELEASED.value}"] > 100
    assert counters["restored"] == len(weather.maker.made)
    assert counters["restored"] == sum(
        number for name, number in counters.items() if name.startswith("ended_")
    )
