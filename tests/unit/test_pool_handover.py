"""Nobody gets a dead clone or one of another's, within the limits and by the deadline.

All in virtual time: `settle` lets everything happen that can, `pass_time` moves the clock.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.scripted_clones import ONE, Clone, Maker, acquiring, cancelled, end, offer, pool_of, soon
from tests.virtual_time import pass_time, settle, virtual
from vmpool.errors import GuestError, PoolBusyError, PoolTimeoutError
from vmpool.lifecycle import CloneEnd
from vmpool.policy import Census, Limits
from vmpool.pool import Pool


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
async def test_a_tenants_crowd_keeps_no_other_tenant_waiting() -> None:
    maker = Maker()
    served: list[str] = []
    async with pool_of(maker, replace(ONE, queue=20)) as pool:

        async def caller(party: str) -> None:
            clone = await pool.acquire(deadline=soon(), party=party)
            served.append(party)
            await end(pool, clone)

        async with asyncio.TaskGroup() as callers:
            for party in ["crowd"] * 20 + ["alone"] * 2:
                callers.create_task(caller(party))
            await asyncio.sleep(0)  # all of them wait, and none is served yet
            with pytest.raises(PoolBusyError):
                await pool.acquire(deadline=soon(), party="crowd")
    assert len(served) == 22
    assert max(at for at, party in enumerate(served) if party == "alone") <= 4


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
