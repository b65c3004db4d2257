"""Whether a guest's clock goes on as the host's does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.clone import pace
from vmpool.errors import GuestError, GuestFileError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.agent import Agent

SECONDS = st.floats(0, 500)


class Clock:
    """The host's, which goes on when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """Return the seconds that it shows."""
        return self.now


class Guest:
    """Shows one text after the other as its clock; an error is refused with."""

    def __init__(self, *shown: str | GuestFileError) -> None:
        self._shown = iter(shown)

    async def read_file(self, path: str, **_: object) -> AsyncIterator[bytes]:
        assert path == "/proc/uptime"
        shown = next(self._shown, None)
        if isinstance(shown, GuestFileError):
            raise shown
        if shown is None:
            await asyncio.Event().wait()
        text = f"{shown}\n".encode()
        yield text[:3]
        yield text[3:]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace, "time", clock)
    return clock


async def let(guest: Guest, clock: Clock, *, seconds: float, timeout: float = 30.0) -> None:
    """Have time go by beside a guest that is to be in step."""
    async with pace.in_step(cast("Agent", guest), timeout=timeout):
        clock.now += seconds


@given(
    answers=st.tuples(SECONDS, SECONDS),
    between=SECONDS,
    when=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    rate=st.floats(0.999, 1.001),
)
def test_a_right_clock_is_within_bounds_however_slowly_it_is_told(
    answers: tuple[float, float], between: float, when: tuple[float, float], rate: float
) -> None:
    """It was read somewhere in the time that each answer took."""
    again = answers[0] + between
    read = (rate * when[0] * answers[0], rate * (again + when[1] * answers[1]))
    shown = [value // pace.RESOLUTION * pace.RESOLUTION for value in read]
    least, most = pace.bounds(
        pace.Reading(asked=0.0, shown=shown[0], told=answers[0]),
        pace.Reading(asked=again, shown=shown[1], told=again + answers[1]),
    )
    assert least - 1e-6 <= shown[1] - shown[0] <= most + 1e-6


@given(between=st.floats(1, 500), rate=st.sampled_from([0.2, 0.9, 1.1, 4.0]))
def test_a_wrong_clock_is_not_when_it_is_told_fast(between: float, rate: float) -> None:
    told = between * 0.01
    least, most = pace.bounds(
        pace.Reading(asked=0.0, shown=0.0, told=told),
        pace.Reading(asked=between, shown=rate * between, told=between + told),
    )
    assert not least <= rate * between <= most


@pytest.mark.parametrize("second", ["67.01", "66.00", "68.10"])
async def test_a_guest_in_step_is_believed(second: str, clock: Clock) -> None:
    await let(Guest("7.01 3.2", f"{second} 50.1"), clock, seconds=60)


@pytest.mark.parametrize("second", ["7.01", "65.1", "75.01", "456.01", "nan"])
async def test_a_guest_out_of_step_is_not(second: str, clock: Clock) -> None:
    with pytest.raises(GuestError, match="counted wrong") as caught:
        await let(Guest("7.01 3.2", f"{second} 50.1"), clock, seconds=60)
    assert caught.value.error_code == "guest_clock_wrong"


@pytest.mark.parametrize("shown", ["", "soon", GuestFileError("no", code="file_not_found")])
async def test_a_guest_that_shows_no_clock_is_unfit(
    shown: str | GuestFileError, clock: Clock
) -> None:
    with pytest.raises(GuestError) as caught:
        await let(Guest("7.01 3.2", shown), clock, seconds=60)
    assert caught.value.error_code == "guest_unfit"


async def test_a_guest_that_keeps_its_clock_to_itself_is_not_waited_for(clock: Clock) -> None:
    with pytest.raises(GuestError) as caught:
        await let(Guest("7.01 3.2"), clock, seconds=60, timeout=0.01)
    assert caught.value.error_code == "guest_unresponsive"
