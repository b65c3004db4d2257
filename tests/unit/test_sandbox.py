"""An execution's time: what counts is how long the guest keeps its reader waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.virtual_time import pass_time, virtual
from vmpool.errors import GuestError
from vmpool.model import Exited, Output, Stream
from vmpool.sandbox import GRACE, TimedExecution

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.model import ExecutionEvent

TIMEOUT = 5.0


class Talking:
    """A guest that says a word every `pause` seconds, `words` times, and then ends.

    Attributes:
        said: Words so far.
    """

    def __init__(self, *, words: int, pause: float) -> None:
        self.said = 0
        self._words = words
        self._pause = pause

    async def __aiter__(self) -> AsyncIterator[ExecutionEvent]:
        for _ in range(self._words):
            await pass_time(self._pause)
            self.said += 1
            yield Output(Stream.STDOUT, b"x")
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
