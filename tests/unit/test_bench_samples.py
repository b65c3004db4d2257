"""What the benchmark says of its samples, on vectors whose answers are known."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.samples import Sense, Series, Target, header, rows

HUNDRED = [float(number) for number in range(100, 0, -1)]


@pytest.mark.parametrize(
    ("samples", "rank", "expected"),
    [
        ([7.0], 99, 7.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([15.0, 20.0, 35.0, 40.0, 50.0], 30, 20.0),  # the textbook's example of nearest rank
        ([15.0, 20.0, 35.0, 40.0, 50.0], 40, 20.0),
        ([15.0, 20.0, 35.0, 40.0, 50.0], 100, 50.0),
        (HUNDRED, 95, 95.0),
        (HUNDRED, 99, 99.0),
        ([*HUNDRED, 1000.0], 99, 100.0),
    ],
)
def test_a_percentile_is_the_nearest_rank(
    samples: list[float], rank: float, expected: float
) -> None:
    assert Series("s", samples=samples).percentile(rank) == expected


@given(st.lists(st.floats(-1e9, 1e9), min_size=1), st.floats(0.01, 100))
def test_a_percentile_is_a_sample_with_enough_samples_below(
    samples: list[float], rank: float
) -> None:
    value = Series("s", samples=samples).percentile(rank)
    assert value in samples
    assert sum(sample <= value for sample in samples) >= rank / 100 * len(samples) - 1e-9


def test_the_median_of_an_even_number_is_between_the_middle_two() -> None:
    assert Series("s", samples=[4.0, 1.0, 3.0, 2.0]).median == 2.5


def test_the_spread_is_the_middle_half_over_the_median() -> None:
    assert Series("s", samples=[1.0, 2.0, 4.0, 6.0, 60.0]).spread == 1.0
    assert Series("s", samples=[3.0]).spread == 0.0
    assert Series("s", samples=[0.0, 0.0]).spread == 0.0


def test_a_series_without_samples_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no sample"):
        Series("s").percentile(50)


@pytest.mark.parametrize(
    ("sense", "value", "met"),
    [
        (Sense.AT_MOST, 60.0, True),
        (Sense.AT_MOST, 60.1, False),
        (Sense.AT_LEAST, 60.0, True),
        (Sense.AT_LEAST, 59.9, False),
    ],
)
def test_a_target_says_which_side_is_good(sense: Sense, value: float, met: bool) -> None:
    assert Target(value=60.0, sense=sense).met_by(value) is met


def test_the_median_and_nothing_else_decides_whether_a_target_is_met() -> None:
    series = Series("s", target=Target(value=10.0), samples=[9.0, 10.0, 500.0])
    assert series.met is True
    assert Series("s", samples=[9.0]).met is None


def test_the_data_hold_every_sample_in_its_order() -> None:
    target = Target(value=10.0, sense=Sense.AT_LEAST)
    data = Series("rate", "1/s", target, samples=[12.0, 8.0, 11.0]).as_data()
    assert json.loads(json.dumps(data)) == {
        "name": "rate",
        "unit": "1/s",
        "target": {"sense": "at least", "value": 10.0},
        "met": True,
        "floor": "",
        "n": 3,
        "min": 8.0,
        "p50": 11.0,
        "p95": 12.0,
        "p99": 12.0,
        "p99.9": 12.0,
        "max": 12.0,
        "spread": round(4 / 11, 4),
        "samples": [12.0, 8.0, 11.0],
    }


def test_the_table_shows_series_with_samples_under_their_columns() -> None:
    table = [
        header(),
        *rows(
            [
                Series("spawn", samples=[40.0, 9.5, 50.0]),
                Series("never measured"),
                Series("to resumed", target=Target(value=60.0), samples=[61.0]),
                Series("rate", "1/s", Target(value=10.0, sense=Sense.AT_LEAST), [12.0]),
            ]
        ),
    ]
    assert [line.split() for line in table] == [
        ["n", "min", "p50", "p95", "p99", "p99.9", "target", "median"],
        ["spawn", "[ms]", "3", "9.50", "40.0", "50.0", "50.0", "50.0"],
        ["to", "resumed", "[ms]", "1", *5 * ["61.0"], "<=", "60", "misses"],
        ["rate", "[1/s]", "1", *5 * ["12.0"], ">=", "10", "meets"],
    ]
    assert table[0].index("p50") + 3 == table[1].index("40.0") + 4
