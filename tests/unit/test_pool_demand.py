"""A pool keeps more spares while many are asked for, between its floor and its ceiling."""

from __future__ import annotations

import asyncio

from tests.scripted_clones import Clone, Maker, acquiring, end, pool_of
from tests.virtual_time import pass_time, settle, virtual
from vmpool.demand import HALF_LIFE
from vmpool.policy import Census, Limits
from vmpool.pool import Pool

SIZED = Limits(ready=1, ready_most=6, total=20, parallel_restores=2)


async def crowd(pool: Pool[Clone], count: int) -> None:
    """Have so many at once come and go."""
    callers = [acquiring(pool, 60.0) for _ in range(count)]
    for clone in await asyncio.gather(*callers):
        await end(pool, clone)


@virtual
async def test_after_a_crowd_there_is_a_spare_for_each() -> None:
    maker = Maker()
    maker.seconds = 1.0
    async with pool_of(maker, SIZED) as pool:
        await pass_time(2.0)
        assert (pool.aim, pool.census) == (1, Census(ready=1))
        await crowd(pool, 4)
        await pass_time(5.0)
        assert (pool.aim, pool.census) == (4, Census(ready=4))

        queued = pool.counters["queued"]
        await crowd(pool, 4)
        assert pool.counters["queued"] == queued
    assert maker.alive == []


@virtual
async def test_a_crowd_does_not_raise_it_over_its_ceiling() -> None:
    maker = Maker()
    maker.seconds = 1.0
    async with pool_of(maker, SIZED) as pool:
        await crowd(pool, 15)
        await pass_time(10.0)
        assert (pool.aim, pool.census) == (6, Census(ready=6))


@virtual
async def test_spares_go_one_by_one_when_nobody_comes_down_to_the_floor() -> None:
    maker = Maker()
    maker.seconds = 1.0
    async with pool_of(maker, SIZED) as pool:
        await crowd(pool, 4)
        await pass_time(HALF_LIFE)
        assert (pool.aim, pool.census) == (2, Census(ready=2))
        await pass_time(10 * HALF_LIFE)
        assert (pool.aim, pool.census) == (1, Census(ready=1))


@virtual
async def test_a_pool_that_is_not_sized_keeps_what_it_keeps() -> None:
    maker = Maker()
    async with pool_of(maker, Limits(ready=1, total=20)) as pool:
        await crowd(pool, 8)
        await settle()
        assert (pool.aim, pool.census) == (1, Census(ready=1))


@virtual
async def test_a_withdrawn_pool_keeps_none_whatever_was_asked() -> None:
    maker = Maker()
    async with pool_of(maker, SIZED) as pool:
        await crowd(pool, 4)
        await settle()
        await pool.withdraw()
        assert (pool.aim, pool.census, maker.alive) == (0, Census(), [])
        await pass_time(HALF_LIFE)
        assert pool.census == Census()
