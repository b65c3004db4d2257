"""What a guest says of what it uses is read as numbers, or not at all."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool import gauges
from vmpool.errors import TaskError

SAID = """\
cpu  100 0 100 700 100 0 0 0 0 0
2
cpu  130 0 110 760 100 0 0 0 0 0
MemTotal:        1000 kB
MemAvailable:     600 kB
Cached:           200 kB
     Used  1B-blocks
     4096 1048576
"""


def test_a_reading_is_what_a_guest_says() -> None:
    assert gauges.parse(SAID, 5) == gauges.Reading(
        at_ns=5,
        cpus=2,
        cpu_percent=40.0,
        memory_bytes=1_024_000,
        memory_used_bytes=409_600,
        memory_cached_bytes=204_800,
        disk_bytes=1_048_576,
        disk_used_bytes=4096,
    )


@pytest.mark.parametrize("wrong", ["", SAID.replace("4096", "-1"), SAID.replace("Cached", "Cash")])
def test_what_makes_no_sense_is_refused(wrong: str) -> None:
    with pytest.raises(TaskError) as refused:
        gauges.parse(wrong, 0)
    assert refused.value.error_code == "gauge_unreadable"


@given(st.text(max_size=200), st.integers(0, len(SAID)))
def test_nothing_that_a_guest_says_is_worse_than_refused(junk: str, at: int) -> None:
    with contextlib.suppress(TaskError):
        read = gauges.parse(SAID[:at] + junk + SAID[at:], 0)
        assert 0 <= read.cpu_percent <= 100
        assert read.memory_used_bytes >= 0
