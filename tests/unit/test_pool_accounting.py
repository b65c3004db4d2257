"""Thousands of callers, cancelled at random among clones that fail at random, lose no clone."""

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
