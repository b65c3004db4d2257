"""An execution's time: the guest may neither keep its reader waiting beyond it nor talk on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.virtual_time import pass_time, virtual
from vmpool.errors import GuestError
from vmpool.model import Exited, Output, Result, Stream
from vmpool.timed_execution import EVENT_BYTES, GRACE, REST_BYTES, TimedExecution

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.model import ExecutionEvent

TIMEOUT = 5.0
WORD = Output(Stream.STDOUT, b"x")


class Talking:
    """A guest that says a word every `pause` seconds, `words` times, and then ends.

    Attributes:
        said: Words so far.
    """

    def __init__(self, *, words: int, pause: float, word: ExecutionEvent = WORD) -> None:
        self.said = 0
        self._word = word
        self._words = words
        self._pause = pause

    async def __aiter__(self) -> AsyncIterator[ExecutionEvent]:
        for _ in range(self._words):
            if self._pause:
                await pass_time(self._pause)
            self.said += 1
            yield self._word
        yield Exited(exit_code=0)

    async def write_stdin(self, data: bytes) -> None:
        """Take nothing."""

    async def close_stdin(self) -> None:
        """Take nothing."""

    async def kill(self, signal: int) -> None:
        """Live on."""


def timed(guest: Any, timeout: float | None = TIMEOUT) -> TimedExecution:
    return TimedExecution(guest, timeout)


@virtual
async def test_a_guest_cannot_stretch_its_time_by_talking() -> None:
    guest = Talking(words=10_000, pause=1.5)
    with pytest.raises(GuestError) as raised:
        async for _ in timed(guest):
            pass
    assert raised.value.error_code == "guest_unresponsive"
    assert guest.said == int((TIMEOUT + GRACE) / 1.5)


async def read(execution: TimedExecution, *, pause: float) -> None:
    """Read to the end, taking a while over each event."""
    async for _ in execution:
        await pass_time(pause)


@virtual
async def test_a_flood_ends_with_its_time_however_fast_it_is_read() -> None:
    loop = asyncio.get_running_loop()
    for event in (Output(Stream.STDOUT, b"x" * 65536), Output(Stream.STDOUT, b""), Result({})):
        began = loop.time()
        # The time is the reader's own: this guest never keeps it waiting.
        with pytest.raises(GuestError) as raised:
            await read(timed(Talking(words=10**9, pause=0.0, word=event)), pause=0.01)
        assert raised.value.error_code == "guest_unresponsive"
        assert loop.time() - began < TIMEOUT + GRACE + REST_BYTES / EVENT_BYTES * 0.01 + 0.1


@virtual
async def test_a_slow_reader_is_no_fault_of_the_guest() -> None:
    events = []
    async for event in timed(Talking(words=10, pause=1.0)):
        events.append(event)
        await pass_time(100 * GRACE)
    assert events[-1] == Exited(exit_code=0)


@virtual
async def test_without_a_time_there_is_no_end_of_patience() -> None:
    events = [event async for event in timed(Talking(words=10, pause=100 * GRACE), None)]
    assert events[-1] == Exited(exit_code=0)
