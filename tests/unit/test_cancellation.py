"""What was opened for somebody who is gone by then is closed."""

from __future__ import annotations

import asyncio
import threading

import pytest

from vmpool.cancellation import opened


class Door:
    """Is closed or not."""

    is_closed = False

    def close(self) -> None:
        self.is_closed = True


async def test_what_is_opened_is_the_callers() -> None:
    door = Door()
    assert await opened(lambda: door) is door
    assert not door.is_closed


async def test_what_was_opened_for_one_who_was_cancelled_is_closed() -> None:
    door, began, may = Door(), threading.Event(), threading.Event()

    def make() -> Door:
        began.set()
        may.wait()
        return door

    opening = asyncio.ensure_future(opened(make))
    await asyncio.to_thread(began.wait)
    opening.cancel()
    may.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert door.is_closed


async def test_a_failure_to_open_is_the_callers_to_know() -> None:
    def make() -> Door:
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        await opened(make)
