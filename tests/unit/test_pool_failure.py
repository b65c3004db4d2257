"""A pool outlives what goes wrong with its clones, and ends with nothing left.

All in virtual time: `settle` lets everything happen that can, `pass_time` moves the clock.
"""

from __future__ import annotations

import asyncio
import errno

import pytest

from tests.scripted_clones import ONE, Clone, Maker, acquiring, end, offer, pool_of, soon
from tests.virtual_time import pass_time, settle, virtual
from vmpool.cancellation import uninterrupted
from vmpool.errors import CapacityError, EngineError, GuestError, HostError, PoolTimeoutError
from vmpool.lifecycle import CloneEnd
from vmpool.policy import BACKOFF_MOST, Census, Limits


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
async def test_a_restore_without_a_descriptor_says_so() -> None:
    maker = Maker()
    maker.error = OSError(errno.EMFILE, "too many open files")
    async with pool_of(maker, ONE) as pool:
        with pytest.raises(PoolTimeoutError) as caught:
            await pool.acquire(deadline=soon())
        assert isinstance(caught.value.__cause__, HostError)
        assert caught.value.__cause__.error_code == "descriptors_spent"


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
async def test_a_kill_that_no_cancellation_ends_is_given_up_in_time() -> None:
    maker = Maker()
    maker.prepare = lambda clone: clone.kill_gate.clear()
    async with pool_of(maker, Limits(ready=1, total=1)) as pool:
        await settle()
        stuck = maker.made[0]
        gentle = stuck.kill
        stuck.kill = lambda: uninterrupted(gentle())  # type: ignore[method-assign]
    assert pool.counters["kill_failed"] == 1
    stuck.kill_gate.set()
    await settle()


@virtual
async def test_closing_ends_although_a_clone_cannot_be_killed() -> None:
    maker = Maker()
    maker.prepare = lambda clone: clone.kill_gate.clear()
    async with pool_of(maker, Limits(ready=1, total=1)) as pool:
        await settle()
    assert pool.counters["kill_failed"] == 1
    assert pool.census == Census()
