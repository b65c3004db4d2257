"""A pool counts clones that others make for it, and neither they nor waiters get the same room."""

from __future__ import annotations

import pytest

from tests.scripted_clones import ONE, Clone, Maker, acquiring, cancelled, end, offer, pool_of, soon
from tests.virtual_time import settle, virtual
from vmpool.errors import CapacityError, ConflictError, EngineError, PoolBusyError
from vmpool.policy import Census, Limits


@virtual
async def test_a_place_counts_as_held_from_its_reserving_to_its_clones_release() -> None:
    async with pool_of(Maker(), ONE) as pool:
        place = pool.reserve()
        assert pool.census == Census(held=1)
        child = Clone(7)
        place.fill(child)
        assert pool.census == Census(held=1)
        await end(pool, child)
        assert pool.census == Census()
        counters = pool.counters
        assert (counters["filled"], counters["ended_released"]) == (1, 1)
        assert "restored" not in counters


@virtual
async def test_a_place_that_is_given_up_serves_the_caller_who_waits() -> None:
    maker = Maker()
    async with pool_of(maker, ONE) as pool:
        place = pool.reserve()
        caller = acquiring(pool)
        await settle()
        assert not caller.done()
        place.give_up()
        place.give_up()
        clone = await caller
        assert pool.counters["ended_given_up"] == 1
        await end(pool, clone)


@virtual
async def test_a_filled_place_is_no_longer_given_up() -> None:
    async with pool_of(Maker(), ONE) as pool:
        place = pool.reserve()
        child = Clone(7)
        place.fill(child)
        place.give_up()
        assert pool.census == Census(held=1)
        with pytest.raises(ConflictError):
            place.fill(Clone(8))
        await end(pool, child)


@virtual
async def test_a_place_given_up_is_not_filled() -> None:
    async with pool_of(Maker(), ONE) as pool:
        place = pool.reserve()
        place.give_up()
        with pytest.raises(ConflictError):
            place.fill(Clone(7))
        assert pool.census == Census()


@virtual
async def test_spares_give_way_to_a_place() -> None:
    maker = Maker()
    async with pool_of(maker, Limits(ready=2, total=3)) as pool:
        await settle()
        places = [pool.reserve() for _ in range(3)]
        await settle()
        assert pool.census == Census(held=3)
        assert maker.alive == []
        for place in places:
            place.give_up()
        await settle()
        assert pool.census == Census(ready=2)


@virtual
async def test_a_spare_that_is_being_restored_gives_way_too() -> None:
    maker = Maker()
    maker.gate.clear()
    async with pool_of(maker, Limits(ready=1, total=1)) as pool:
        await settle()
        place = pool.reserve()
        assert pool.census == Census(held=1, dying=1)
        await settle()
        assert pool.census == Census(held=1)
        assert maker.running == 0
        assert pool.counters["ended_recalled"] == 1
        place.give_up()


@virtual
async def test_a_pool_whose_clones_are_all_in_use_has_no_place() -> None:
    async with pool_of(Maker(), Limits(ready=1, total=2)) as pool:
        held = await pool.acquire(deadline=soon())
        place = pool.reserve()
        with pytest.raises(PoolBusyError) as caught:
            pool.reserve()
        assert caught.value.error_code == "pool_full"
        assert pool.counters["refused"] == 1
        assert pool.census.held == 2
        place.give_up()
        await end(pool, held)


@virtual
async def test_the_room_of_a_caller_who_waits_is_not_reserved() -> None:
    maker = Maker()
    maker.gate.clear()
    async with pool_of(maker, ONE) as pool:
        caller = acquiring(pool)
        await settle()
        with pytest.raises(PoolBusyError):
            pool.reserve()
        await cancelled(caller)
        pool.reserve().give_up()
        maker.gate.set()


@virtual
async def test_a_clone_that_is_offered_is_not_reserved_again() -> None:
    maker = Maker()
    maker.gate.clear()
    async with pool_of(maker, ONE) as pool:
        caller = acquiring(pool)
        await settle()
        await offer(maker)
        with pytest.raises(PoolBusyError):
            pool.reserve()
        await end(pool, await caller)


@virtual
async def test_reserving_needs_no_restore_that_succeeds() -> None:
    maker = Maker()
    maker.error = EngineError("no such file")
    async with pool_of(maker, Limits(ready=1, total=2)) as pool:
        await settle()
        pool.reserve().give_up()


@virtual
async def test_a_held_clone_is_exchanged_for_another() -> None:
    async with pool_of(Maker(), ONE) as pool:
        old = await pool.acquire(deadline=soon())
        new = Clone(7)
        pool.exchange(old, new)
        assert pool.census == Census(held=1)
        with pytest.raises(ValueError, match="not given out"):
            pool.release(old)
        await old.kill()
        await end(pool, new)
        assert pool.census == Census()
        assert pool.counters["ended_released"] == 2
        assert pool.counters["restored"] + pool.counters["filled"] == 2


@virtual
async def test_a_clone_has_one_place() -> None:
    async with pool_of(Maker(), Limits(ready=0, total=3)) as pool:
        first, second = [await pool.acquire(deadline=soon()) for _ in range(2)]
        with pytest.raises(ValueError, match="has a place"):
            pool.exchange(first, second)
        place = pool.reserve()
        with pytest.raises(ValueError, match="has a place"):
            place.fill(first)
        place.give_up()
        await end(pool, first)
        await end(pool, second)
        assert pool.census == Census()


@virtual
async def test_a_place_outlives_its_pool() -> None:
    async with pool_of(Maker(), Limits(ready=0, total=3)) as pool:
        kept, lost = pool.reserve(), pool.reserve()
    with pytest.raises(CapacityError) as caught:
        pool.reserve()
    assert caught.value.error_code == "pool_closed"
    child = Clone(7)
    kept.fill(child)
    lost.give_up()
    assert pool.census == Census(held=1)
    await end(pool, child)
    assert pool.census == Census()


@virtual
async def test_a_withdrawn_pool_gives_places_and_no_clones() -> None:
    maker = Maker()
    async with pool_of(maker, Limits(ready=2, total=4, parallel_restores=1)) as pool:
        held = await pool.acquire(deadline=soon())
        maker.gate.clear()
        await pool.withdraw()
        assert pool.census == Census(held=1)
        assert maker.alive == [held]
        with pytest.raises(CapacityError) as caught:
            await pool.acquire(deadline=soon())
        assert caught.value.error_code == "pool_closed"
        child = Clone(7)
        pool.reserve().fill(child)
        await end(pool, held)
        await end(pool, child)
        await settle()
        assert pool.census == Census()


@virtual
async def test_a_withdrawn_pool_turns_away_who_waits() -> None:
    maker = Maker()
    maker.gate.clear()
    async with pool_of(maker, ONE) as pool:
        caller = acquiring(pool)
        await settle()
        await pool.withdraw()
        with pytest.raises(CapacityError):
            await caller
        assert pool.census == Census()
