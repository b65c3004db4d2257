"""Thousands of callers, cancelled at random among clones that fail at random, lose no clone.

Some have clones that they made themselves, in places that they reserved before.
"""

from __future__ import annotations

import asyncio
import random

import pytest

from tests.scripted_clones import Clone, Maker, pool_of, soon
from tests.virtual_time import pass_time, virtual
from vmpool.errors import CapacityError, EngineError, GuestError
from vmpool.lifecycle import CloneEnd
from vmpool.policy import Census, Limits
from vmpool.pool import Pool


class Weather:
    """Bad luck for clones and callers, the same for the same seed."""

    def __init__(self, seed: int, *, bringing: float = 0.0) -> None:
        self.bringing = bringing
        self.chance = random.Random(seed)
        self.maker = Maker()
        self.maker.prepare = self.spoil
        self.holds: set[Clone] = set()
        self.callers: set[asyncio.Task[None]] = set()
        self.counters: dict[str, int] = {}

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
        await self.hold(pool, clone)

    async def bring(self, pool: Pool[Clone]) -> None:
        """Reserve a place and fill it, or give it up as those do whose clones fail."""
        try:
            place = pool.reserve()
        except CapacityError:
            return
        try:
            await pass_time(self.chance.choice([0.0, 0.01, 0.2]))
            if self.happens(0.2):
                return
            clone = Clone(-1)
            place.fill(clone)
        finally:
            place.give_up()
        if self.happens(0.3):
            clone, old = Clone(-1), clone
            pool.exchange(old, clone)
        await self.hold(pool, clone)

    async def hold(self, pool: Pool[Clone], clone: Clone) -> None:
        self.holds.add(clone)
        try:
            await pass_time(self.chance.random())
        finally:
            self.holds.discard(clone)
            clone.die()
            pool.release(clone)

    async def turn(self, pool: Pool[Clone]) -> None:
        """Send one more caller, and let something else happen."""
        work = self.bring(pool) if self.happens(self.bringing) else self.call(pool)
        caller = asyncio.create_task(work)
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
    weather = Weather(seed)
    count_clones_after_thousands_of_callers(weather)
    counters = weather.counters
    assert counters["acquired"] == counters[f"ended_{CloneEnd.RELEASED.value}"] > 100


@pytest.mark.parametrize("seed", range(2))
def test_thousands_who_bring_clones_of_their_own_lose_none_either(seed: int) -> None:
    weather = Weather(seed, bringing=0.9)
    count_clones_after_thousands_of_callers(weather)
    counters = weather.counters
    released = counters[f"ended_{CloneEnd.RELEASED.value}"]
    assert counters["acquired"] + counters["filled"] == released
    assert min(counters["acquired"], counters["filled"]) > 100


@virtual
async def count_clones_after_thousands_of_callers(weather: Weather) -> None:
    most = 18 if weather.bringing else 9  # with spares that are giving way to places
    async with pool_of(weather.restore, Limits(ready=3, total=9, queue=20)) as pool:
        for turn in range(3000):
            if turn % 500 == 499:
                pool.resize(Limits(ready=turn // 500, total=9, queue=20, parallel_restores=3))
            await weather.turn(pool)
            assert pool.census.alive <= most
            assert pool.census.held <= 9
        outcomes = await asyncio.gather(*weather.callers, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} <= {type(None), asyncio.CancelledError}
        await pass_time(60.0)
        assert pool.census == Census(ready=pool.limits.ready)
    assert pool.census == Census()
    assert weather.maker.alive == []
    counters = pool.counters
    assert counters.pop(f"ended_{CloneEnd.RESTORE_FAILED.value}") > 0
    given_up = counters.pop(f"ended_{CloneEnd.GIVEN_UP.value}")
    recalled = counters.pop(f"ended_{CloneEnd.RECALLED.value}")
    assert (given_up > 0, recalled > 0) == (weather.bringing > 0,) * 2
    assert counters["restored"] == len(weather.maker.made)
    assert counters["restored"] + counters["filled"] == sum(
        number for name, number in counters.items() if name.startswith("ended_")
    )
    weather.counters = counters
