"""Every state meets every event, and what is not allowed is refused."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.errors import ConflictError
from vmpool.lifecycle import (
    CloneEvent,
    CloneState,
    End,
    EndReason,
    Life,
    Reaped,
    SandboxEvent,
    SandboxState,
    Started,
    Turn,
    advance,
    advance_clone,
)

TOUCHED = {CloneState.ACTIVATING, CloneState.HELD, CloneState.DYING, CloneState.DEAD}


def clone_after(state: CloneState, event: CloneEvent) -> CloneState | None:
    try:
        return advance_clone(state, event)
    except ConflictError:
        return None


def life_after(life: Life, event: SandboxEvent) -> Life | None:
    try:
        return advance(life, event)
    except ConflictError:
        return None


def test_a_touched_clone_is_never_ready_again() -> None:
    for state, event in product(TOUCHED, CloneEvent):
        assert clone_after(state, event) in TOUCHED | {None}


def test_only_one_caller_at_a_time_gets_a_clone() -> None:
    given_away = {CloneState.OFFERED, CloneState.ACTIVATING, CloneState.HELD}
    for state in given_away:
        assert clone_after(state, CloneEvent.OFFER) is None
    takers = [s for s in CloneState if clone_after(s, CloneEvent.TAKE) is not None]
    assert takers == [CloneState.READY, CloneState.OFFERED]


def test_what_is_illegal_has_a_code_of_its_own() -> None:
    with pytest.raises(ConflictError) as clone:
        advance_clone(CloneState.HELD, CloneEvent.OFFER)
    with pytest.raises(ConflictError) as sandbox:
        advance(Life(), Reaped())
    assert {clone.value.error_code, sandbox.value.error_code} == {"illegal_transition"}


def test_a_dead_clone_stays_dead() -> None:
    assert all(clone_after(CloneState.DEAD, event) is None for event in CloneEvent)


def test_every_clone_can_die() -> None:
    for state in set(CloneState) - {CloneState.DEAD}:
        seen = {state}
        while True:
            more = {n for s, e in product(seen, CloneEvent) if (n := clone_after(s, e))} | seen
            if more == seen:
                break
            seen = more
        assert CloneState.DEAD in seen


OVER = {SandboxState.ENDING, SandboxState.ENDED}


@pytest.mark.parametrize("state", list(SandboxState))
def test_ending_is_possible_in_every_state_and_idempotent(state: SandboxState) -> None:
    first = EndReason.EXPIRED if state in OVER else None
    life = advance(Life(state, first), End(EndReason.KILLED))
    assert life.state is (state if state in OVER else SandboxState.ENDING)
    assert advance(life, End(EndReason.CRASHED)) == life


@pytest.mark.parametrize("state", list(SandboxState))
def test_a_sandbox_starts_once(state: SandboxState) -> None:
    started = life_after(Life(state), Started())
    assert (started is not None) == (state is SandboxState.STARTING)


def test_what_was_begun_with_a_machine_ends_where_it_began_or_where_it_was_to_lead() -> None:
    lasting = {SandboxState.RUNNING, SandboxState.PAUSED}
    for state, turn in product(set(SandboxState) - lasting, Turn):
        after = life_after(Life(state), turn)
        assert after is None or after.state in lasting
    begun = {
        (state, after.state)
        for state, turn in product(lasting, Turn)
        if (after := life_after(Life(state), turn))
    }
    assert begun == {
        (SandboxState.RUNNING, SandboxState.PAUSING),
        (SandboxState.PAUSED, SandboxState.RESUMING),
        (SandboxState.RUNNING, SandboxState.ROLLING_BACK),
    }
    for state, under_way in begun:
        afters = {life_after(Life(under_way), turn) for turn in (Turn.RUNS, Turn.HALTED)}
        assert Life(state) in afters


def test_a_running_sandbox_did_not_fail_to_start() -> None:
    assert life_after(Life(SandboxState.RUNNING), End(EndReason.FAILED_START)) is None


events = st.lists(
    st.just(Started())
    | st.just(Reaped())
    | st.sampled_from(Turn)
    | st.builds(End, st.sampled_from(EndReason)),
    max_size=8,
)


@given(events)
def test_the_first_reason_stays_and_is_there_exactly_when_it_is_over(
    story: list[SandboxEvent],
) -> None:
    life = Life()
    first: EndReason | None = None
    for event in story:
        after = life_after(life, event)
        if after is None:
            continue
        if isinstance(event, End) and first is None:
            first = event.reason
        life = after
        assert life.reason is first
        assert life.over == (first is not None)
