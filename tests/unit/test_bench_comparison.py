"""A verdict is given when the samples carry it and the machine does not explain it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.comparison import CONFIDENCE, Comparison, Verdict, compare, interval
from bench.verdict import as_lines
from tests import bench_runs

STEADY = tuple(10.0 + number / 100 for number in range(20))


def compared(
    before: tuple[float, ...],
    after: tuple[float, ...],
    *,
    unit: str = "ms",
    calibration_ms: tuple[float, ...] = (10.0,),
) -> Comparison:
    """Compare two runs that have one series each."""
    first, second = (
        bench_runs.run(
            bench_runs.finding(
                "create", bench_runs.series("kill", *samples, unit=unit), calibration_ms=took
            )
        )
        for samples, took in ((before, (10.0,)), (after, calibration_ms))
    )
    return compare(first, second)


def times(factor: float) -> tuple[float, ...]:
    return tuple(factor * sample for sample in STEADY)


@pytest.mark.parametrize(
    ("after", "unit", "verdict"),
    [
        (STEADY, "ms", Verdict.SAME),
        (times(1.04), "ms", Verdict.SAME),  # certain, and not worth a word
        (times(1.5), "ms", Verdict.SLOWER),
        (times(0.5), "ms", Verdict.FASTER),
        (times(1.5), "1/s", Verdict.FASTER),
        (times(0.5), "1/s", Verdict.SLOWER),
        (times(1.5), "MB", Verdict.LARGER),
        (times(0.5), "MB", Verdict.SMALLER),
        (times(1.5)[:7], "ms", Verdict.TOO_FEW),
        (times(1.5)[:8], "ms", Verdict.SLOWER),
        ((*STEADY[:14], *times(9.0)[14:]), "ms", Verdict.SAME),  # a bad tail is not a median
    ],
)
def test_a_verdict(after: tuple[float, ...], unit: str, verdict: Verdict) -> None:
    found = compared(STEADY, after, unit=unit)
    (difference,) = found.differences
    assert difference.verdict is verdict
    assert bool(found.worse) is (verdict in {Verdict.SLOWER, Verdict.LARGER})
    assert difference.low <= difference.factor <= difference.high


def test_what_the_machine_was_slower_by_is_no_verdict() -> None:
    assert compared(STEADY, times(1.5), calibration_ms=(10.0, 16.0)).worse == ()
    assert compared(STEADY, times(1.5), calibration_ms=(10.0, 13.0)).worse


def test_the_worst_comes_first_whatever_its_unit() -> None:
    first = bench_runs.finding(
        "create",
        bench_runs.series("kill", *STEADY),
        bench_runs.series("rate", *STEADY, unit="1/s"),
        bench_runs.series("zero pages", *STEADY, unit="%"),
        bench_runs.series("gone", *STEADY),
    )
    second = bench_runs.finding(
        "create",
        bench_runs.series("kill", *times(1.5)),
        bench_runs.series("rate", *times(0.5), unit="1/s"),
        bench_runs.series("zero pages", *times(5.0), unit="%"),
        bench_runs.series("new", *STEADY),
    )
    found = compare(bench_runs.run(first), bench_runs.run(second, qemu="11.0.0"))
    assert [one.name for one in found.differences] == ["rate", "kill"]
    assert found.alone == 2
    assert found.unlike == ("QEMU: 10.0.2, then 11.0.0",)
    lines = list(as_lines(found, everything=False))
    assert lines[0] == "not the same in both: QEMU: 10.0.2, then 11.0.0"
    assert "slower:" in lines


def test_nothing_is_said_to_have_changed_when_nothing_has() -> None:
    lines = list(as_lines(compared(STEADY, STEADY), everything=False))
    assert lines[-1] == "nothing changed beyond the noise"
    assert any("kill" in line for line in as_lines(compared(STEADY, STEADY), everything=True))


def test_words_of_a_strangers_record_command_no_terminal() -> None:
    first, second = (
        bench_runs.run(bench_runs.finding("create", bench_runs.series("\x1b[2J", *samples)))
        for samples in (STEADY, times(3.0))
    )
    lines = "".join(as_lines(compare(first, second), everything=True))
    assert "\x1b" not in lines
    assert "[2J" in lines


@given(st.integers(1, 200))
def test_the_interval_holds_the_median_as_often_as_it_says(count: int) -> None:
    found = interval([float(number) for number in range(count)])
    if found is None:
        assert 1 - 2 * 0.5**count < CONFIDENCE
        return
    rank = int(found[0])
    assert found[1] == count - 1 - rank
    outside = 2 * sum(math.comb(count, below) for below in range(rank + 1)) / 2**count
    assert 1 - outside >= CONFIDENCE
    narrower = outside + 2 * math.comb(count, rank + 1) / 2**count
    assert 1 - narrower < CONFIDENCE
