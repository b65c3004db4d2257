"""When a measurement has enough, and when it is given up."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from bench import measurements, suite
from bench.measurement import FAILURES_MOST, Chapter, Effort, Findings, Measurement, Pace, Rounds
from bench.samples import Target
from bench.subject import Subject
from bench.suite import MEASUREMENTS, Outcome
from vmpool.errors import GuestError


def test_a_measurement_ends_after_its_rounds() -> None:
    rounds = Rounds(quick=2, full=5)
    for effort, turns in ((Effort.QUICK, [0, 1]), (Effort.FULL, [0, 1, 2, 3, 4])):
        pace = Pace(rounds=rounds.of(effort), deadline=math.inf)
        assert list(pace.turns()) == turns
        assert not pace.over


def test_a_measurement_whose_time_is_up_still_takes_one_sample() -> None:
    pace = Pace(rounds=100, deadline=-math.inf)
    assert pace.over
    assert list(pace.turns()) == [0]


def test_a_measurement_is_given_up_after_a_few_failures_and_keeps_what_it_found() -> None:
    found = Findings(measurement="restore", image="base")
    found.series("spawn").add(40.0)
    for _ in range(FAILURES_MOST - 1):
        found.fail(GuestError("no answer", code="guest_unreachable"))
    last = GuestError("no answer")
    with pytest.raises(GuestError) as raised:
        found.fail(last)
    assert raised.value is last
    assert found.failures[0] == "no answer [guest_unreachable]"
    assert len(found.failures) == FAILURES_MOST
    assert [series.samples for series in found.all_series] == [[40.0]]


def test_a_series_is_one_however_often_it_is_asked_for() -> None:
    found = Findings(measurement="restore", image="base")
    target = Target(value=60.0)
    found.series("to resumed", target=target).add(1.0)
    found.series("to resumed").add(2.0)
    found.series("never measured")
    assert found.series("to resumed").samples == [1.0, 2.0]
    assert found.series("to resumed").target is target
    assert [series.name for series in found.all_series if series.samples] == ["to resumed"]
    data = found.as_data()["series"]
    assert isinstance(data, list)
    assert len(data) == 1


def test_every_module_of_a_measurement_is_found_and_stands_in_its_chapter() -> None:
    modules = Path(measurements.__file__).parent.glob("[!_]*.py")
    assert sorted(one.measure.__module__.rpartition(".")[2] for one in MEASUREMENTS) == sorted(
        path.stem for path in modules
    )
    assert len({one.name for one in MEASUREMENTS}) == len(MEASUREMENTS)
    chapters = [one.chapter for one in MEASUREMENTS]
    assert chapters == sorted(chapters, key=list(Chapter).index)


async def test_a_measurement_that_does_not_end_leaves_the_others_their_turn() -> None:
    ended = []

    async def hang(subject: Subject, pace: Pace, findings: Findings) -> None:
        findings.series("so far").add(1.0)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append("cleaned up")

    slow = Measurement(
        name="slow", summary="", rounds=Rounds(quick=1, full=1), weight=1, measure=hang
    )
    subject = cast("Subject", SimpleNamespace(image=SimpleNamespace(name="base")))
    outcome = Outcome()
    pace = Pace(rounds=1, deadline=math.inf)
    await suite._measure(slow, subject, pace, outcome, limit=0.01)
    (found,) = outcome.findings
    assert found.broken_off == "not done after 0 s"
    assert found.series("so far").samples == [1.0]
    assert ended == ["cleaned up"]
