"""What a tenant may have is decided from values, and a minute's worth comes back evenly."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.model import Accelerator, MachineSpec, Transport
from vmpool.quota import Bucket, Excess, Quota, Usage, excess, most_saved_bytes, share_of

NUMBERS = st.integers(min_value=0, max_value=1000)
NAMES = [each.name for each in fields(Usage)]
USAGES = st.builds(Usage, **dict.fromkeys(NAMES, NUMBERS))
QUOTAS = st.builds(Quota, **dict.fromkeys(NAMES, NUMBERS | st.none()))


@given(QUOTAS, USAGES, USAGES)
def test_what_fits_is_within_every_limit_that_is_asked_of(
    quota: Quota, used: Usage, asked: Usage
) -> None:
    over = excess(quota, used, asked)
    too_much = {
        name
        for name in NAMES
        if (limit := getattr(quota, name)) is not None
        and getattr(asked, name)
        and getattr(used + asked, name) > limit
    }
    assert (over is None) == (not too_much)
    if over is not None:
        assert over.resource in too_much
        assert over.used == getattr(used, over.resource)
        assert over.asked == getattr(asked, over.resource)


@given(USAGES, USAGES)
def test_what_is_added_can_be_taken_away(one: Usage, other: Usage) -> None:
    assert one + other - other == one
    assert Usage.total([one, other]) == one + other
    assert Usage.total([]) == Usage()


def test_who_is_over_a_lowered_limit_may_have_more_of_another() -> None:
    quota = Quota(sandboxes=1, checkpoints=5)
    assert excess(quota, Usage(sandboxes=3), Usage(checkpoints=1)) is None
    assert excess(quota, Usage(sandboxes=3), Usage(sandboxes=1)) == Excess(
        resource="sandboxes", used=3, asked=1, limit=1
    )


def test_overrides_go_before_the_settings_and_may_lift_a_limit() -> None:
    quota = Quota(sandboxes=1, vcpus=2).but({"sandboxes": None, "paused": 3, "of_the_future": 4})
    assert quota == Quota(vcpus=2, paused=3)


def test_a_machine_counts_with_all_that_it_can_grow_to() -> None:
    spec = MachineSpec(
        root=Path("/"),
        memory_bytes=256 << 20,
        disk_bytes=1 << 30,
        vcpus=3,
        accelerator=Accelerator.TCG,
        transport=Transport.SERIAL,
    )
    assert share_of(spec) == Usage(sandboxes=1, vcpus=3, memory_bytes=256 << 20)
    assert most_saved_bytes(spec) > (256 << 20) + (1 << 30)


@given(
    per_minute=st.integers(min_value=1, max_value=600),
    steps=st.lists(
        st.tuples(st.floats(min_value=0, max_value=90), st.integers(min_value=1, max_value=700)),
        max_size=60,
    ),
)
def test_no_minute_has_more_than_two_minutes_worth_and_the_long_run_has_one(
    per_minute: int, steps: list[tuple[float, int]]
) -> None:
    bucket, now, taken = Bucket(tokens=per_minute, at=0.0), 0.0, []
    for pause, count in steps:
        now += pause
        match bucket.take(count, per_minute=per_minute, now=now):
            case Bucket() as left:
                bucket = left
                taken.append((now, count))
            case wait:
                assert wait > 0
                assert math.isinf(wait) == (count > per_minute)
    for start, _ in taken:
        assert sum(n for at, n in taken if start <= at < start + 60) <= 2 * per_minute
    assert sum(n for _, n in taken) <= per_minute * (1 + now / 60) + 1e-6


@given(st.integers(min_value=1, max_value=600), st.integers(min_value=1, max_value=600))
def test_who_waits_for_as_long_as_was_said_is_served(per_minute: int, count: int) -> None:
    bucket = Bucket(tokens=0.0, at=0.0)
    wait = bucket.take(count, per_minute=per_minute, now=0.0)
    if count > per_minute:
        assert wait == math.inf
    else:
        assert isinstance(wait, float)
        assert isinstance(bucket.take(count, per_minute=per_minute, now=wait + 1e-6), Bucket)
        assert bucket.used(per_minute=per_minute, now=wait) <= per_minute


def test_a_clock_that_goes_back_gives_nothing() -> None:
    assert Bucket(tokens=0.0, at=100.0).take(1, per_minute=60, now=50.0) == pytest.approx(1.0)


def test_every_member_of_a_usage_has_a_limit() -> None:
    assert asdict(Usage()).keys() | {"creates_per_minute"} == asdict(Quota()).keys()
