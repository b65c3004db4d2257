"""As many spares as would have spared everybody a wait, and fewer as time goes by."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from vmpool.demand import HALF_LIFE, Demand


def asked(times: list[float], *, seconds: float = 1.0, at_once: int = 2, most: int = 100) -> Demand:
    demand = Demand()
    demand.restored(seconds)
    for time in times:
        demand.asked(time, at_once=at_once, most=most)
    return demand


def test_nobody_asks_and_nothing_is_wanted() -> None:
    assert Demand().spares(10.0) == 0
    assert Demand().falls_at(10.0) == math.inf


def test_one_at_a_time_takes_one_spare() -> None:
    assert asked([float(second) for second in range(10)]).spares(9.0) == 1


def test_who_comes_at_once_takes_a_spare_each() -> None:
    assert asked([5.0] * 30).spares(5.0) == 30


def test_more_are_missing_the_longer_a_restore_takes() -> None:
    often = [second / 2 for second in range(20)]
    assert asked(often, seconds=0.4).spares(9.5) == 1
    assert asked(often, seconds=0.9).spares(9.5) == 2


def test_what_comes_faster_than_restores_piles_up() -> None:
    # Ten a second, and two restores of a second at one time: eight more are missing each second.
    steady = [tenth / 10 for tenth in range(50)]
    assert 38 <= asked(steady).spares(5.0) <= 42
    assert asked(steady, at_once=10).spares(5.0) == 10


def test_it_is_half_forgotten_after_a_half_life() -> None:
    demand = asked([0.0] * 16)
    assert demand.spares(HALF_LIFE) == 8
    assert demand.spares(10 * HALF_LIFE) == 0


def test_a_larger_crowd_counts_and_a_smaller_one_does_not_make_it_forget() -> None:
    demand = asked([0.0] * 16)
    demand.asked(60.0, at_once=2, most=100)
    assert demand.spares(60.0) == 14
    for _ in range(20):
        demand.asked(60.0, at_once=2, most=100)
    assert demand.spares(60.0) == 21


def test_a_restore_that_takes_long_once_is_not_what_all_take() -> None:
    demand = asked([], seconds=1.0)
    demand.restored(11.0)
    for time in (0.0, 2.9, 5.8, 8.7):
        demand.asked(time, at_once=1, most=100)
    assert demand.spares(8.7) == 2  # 3 s: missed by little, and not by far


@given(
    times=st.lists(st.floats(0.0, 1000.0), max_size=40).map(sorted),
    most=st.integers(1, 8),
    at_once=st.integers(1, 4),
)
def test_it_falls_when_it_says_and_never_beyond_what_there_may_be(
    times: list[float], most: int, at_once: int
) -> None:
    demand = asked(times, at_once=at_once, most=most)
    now = times[-1] if times else 0.0
    spares = demand.spares(now)
    assert spares <= most
    while spares:
        falls_at = demand.falls_at(now)
        assert falls_at > now
        assert demand.spares(falls_at - 0.01) == spares or falls_at - 0.01 < now
        assert demand.spares(falls_at) == spares - 1
        now, spares = falls_at, spares - 1
