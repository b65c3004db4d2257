"""The plan keeps its limits, serves waiters first, gets there and then holds still."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.errors import InvalidRequestError
from vmpool.policy import BACKOFF_MOST, Census, Limits, Plan, Setback, backoff, plan

counts = st.integers(min_value=0, max_value=10)


@st.composite
def limit_values(draw: st.DrawFn) -> Limits:
    clone_bytes = draw(st.integers(min_value=0, max_value=1000))
    room = draw(st.none() | st.integers(min_value=max(clone_bytes, 1), max_value=80_000))
    return Limits(
        ready=draw(counts),
        total=draw(st.integers(min_value=1, max_value=80)),
        queue=draw(counts),
        parallel_restores=draw(st.integers(min_value=1, max_value=20)),
        memory_bytes=room,
        clone_bytes=clone_bytes,
    )


censuses = st.builds(
    Census, ready=counts, restoring=counts, held=counts, dying=counts, waiting=counts
)


def apply(census: Census, step: Plan) -> Census:
    """Start what the plan starts; nothing has finished yet."""
    return replace(
        census,
        ready=census.ready - step.retire,
        dying=census.dying + step.retire + step.recall,
        restoring=census.restoring + step.restore - step.recall,
    )


def complete(census: Census) -> Census:
    """Let everything that is under way finish, and serve the waiters."""
    arrived = census.ready + census.restoring
    served = min(arrived, census.waiting)
    return Census(
        ready=arrived - served, held=census.held + served, waiting=census.waiting - served
    )


@given(limit_values(), censuses)
def test_nothing_is_restored_beyond_the_limits(limits: Limits, census: Census) -> None:
    step = plan(limits, census)
    after = apply(census, step)
    if step.restore == 0:
        return
    assert after.alive <= limits.total
    assert after.restoring <= limits.parallel_restores
    if limits.memory_bytes is not None:
        assert after.alive * limits.clone_bytes <= limits.memory_bytes


@given(limit_values(), censuses)
def test_the_plan_is_possible_and_does_one_thing(limits: Limits, census: Census) -> None:
    step = plan(limits, census)
    assert step.restore >= 0
    assert 0 <= step.retire <= census.ready
    assert 0 <= step.recall <= census.restoring
    assert not (step.restore and (step.retire or step.recall))


@given(limit_values(), censuses)
def test_a_clone_that_a_waiter_can_have_is_not_retired(limits: Limits, census: Census) -> None:
    step = plan(limits, census)
    assert census.ready - step.retire >= min(census.ready, census.waiting)


@given(limit_values(), censuses)
def test_a_restore_that_a_waiter_needs_is_not_recalled(limits: Limits, census: Census) -> None:
    after = apply(census, plan(limits, census))
    coming = census.ready + census.restoring
    assert after.ready + after.restoring >= min(coming, census.waiting)


@given(limit_values(), censuses)
def test_nothing_spare_is_left_where_there_is_no_room(limits: Limits, census: Census) -> None:
    after = apply(census, plan(limits, census))
    spare = after.ready + after.restoring - after.waiting
    assert spare <= 0 or after.held + after.ready + after.restoring <= limits.capacity


@given(limit_values(), censuses)
def test_waiters_do_not_starve_while_there_is_room(limits: Limits, census: Census) -> None:
    census = replace(census, waiting=census.ready + census.restoring + census.waiting + 1)
    has_room = census.alive < limits.capacity and census.restoring < limits.parallel_restores
    assert (plan(limits, census).restore > 0) == has_room


@given(limit_values(), censuses)
def test_a_plan_that_was_carried_out_asks_for_nothing_more(limits: Limits, census: Census) -> None:
    assert plan(limits, apply(census, plan(limits, census))) == Plan()


@given(limit_values(), censuses)
def test_it_comes_to_rest_where_it_wants_to_be(limits: Limits, census: Census) -> None:
    census = complete(census)
    retired_after_restoring = False
    restored = False
    for _ in range(200):
        step = plan(limits, census)
        if step == Plan():
            break
        restored = restored or step.restore > 0
        retired_after_restoring = retired_after_restoring or (restored and step.retire > 0)
        census = complete(apply(census, step))
    assert plan(limits, census) == Plan()
    assert not retired_after_restoring
    room = max(limits.capacity - census.held, 0)
    assert census.ready == min(limits.ready, room) or census.waiting
    assert not (census.waiting and census.alive < limits.capacity)


@pytest.mark.parametrize(
    "change",
    [
        {"ready": -1},
        {"total": 0},
        {"queue": -1},
        {"parallel_restores": 0},
        {"clone_bytes": -1},
        {"memory_bytes": 99, "clone_bytes": 100},
    ],
)
def test_limits_that_allow_no_clone_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        Limits(**change)
    assert caught.value.error_code == "invalid_limits"


def test_a_single_failure_is_retried_at_once() -> None:
    assert backoff(1, 1.0) == 0.0


@given(st.integers(min_value=2, max_value=10_000), st.floats(min_value=0, max_value=1))
def test_backoff_grows_to_its_bound_and_is_never_nothing(failures: int, jitter: float) -> None:
    assert 0 < backoff(failures, jitter) <= BACKOFF_MOST
    assert backoff(failures, jitter) <= backoff(failures + 1, jitter)


def test_failures_of_one_moment_count_as_one() -> None:
    first = Setback().worse(now=0.0, jitter=1.0)
    second = first.worse(now=0.0, jitter=1.0)
    assert (second.failures, second.retry_at) == (2, 0.1)
    assert second.worse(now=0.05, jitter=1.0) == second
    assert second.worse(now=0.1, jitter=1.0).failures == 3


def test_a_success_ends_the_row_but_not_the_wait_that_is_on() -> None:
    setback = Setback(failures=5, retry_at=3.0).over()
    assert setback == Setback(failures=0, retry_at=3.0)
