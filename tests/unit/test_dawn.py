"""Who wakes when: a few at a time, and at once whoever is asked something."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest

from vmpool.clone import Dawn

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Sleeper:
    """One that wakes for as long as it is let."""

    def __init__(self, dawn: Dawn) -> None:
        self.called, self.wakes, self.woken = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self._wake(dawn))

    async def _wake(self, dawn: Dawn) -> None:
        async with dawn.turn(self.called):
            self.wakes.set()
            await self.woken.wait()


@contextlib.asynccontextmanager
async def sleepers(count: int, *, at_once: int) -> AsyncIterator[list[Sleeper]]:
    dawn = Dawn(at_once)
    those = [Sleeper(dawn) for _ in range(count)]
    await settled()
    try:
        yield those
    finally:
        for one in those:
            one.task.cancel()
        await asyncio.gather(*(one.task for one in those), return_exceptions=True)


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def awake(those: list[Sleeper]) -> list[bool]:
    return [one.wakes.is_set() for one in those]


@pytest.mark.parametrize("at_once", [1, 2])
async def test_a_few_wake_at_a_time_in_their_order(at_once: int) -> None:
    async with sleepers(4, at_once=at_once) as those:
        for woken in range(4):
            assert awake(those) == [number < woken + at_once for number in range(4)]
            those[woken].woken.set()
            await settled()


async def test_one_that_is_called_wakes_at_once_and_the_others_keep_their_turns() -> None:
    async with sleepers(4, at_once=1) as those:
        those[2].called.set()
        await settled()
        assert awake(those) == [True, False, True, False]
        those[0].woken.set()  # one wakes still
        await settled()
        assert awake(those) == [True, False, True, False]
        those[2].woken.set()
        await settled()
        assert awake(those) == [True, True, True, False]


async def test_a_turn_that_comes_to_one_that_is_cancelled_goes_to_the_next() -> None:
    async with sleepers(3, at_once=1) as those:
        those[0].woken.set()
        await asyncio.sleep(0)
        assert those[1].called.is_set()  # the turn is its, and it has not run since
        assert not those[1].wakes.is_set()
        those[1].task.cancel()
        await settled()
        assert awake(those) == [True, False, True]


async def test_one_that_is_cancelled_in_line_takes_no_turn() -> None:
    async with sleepers(3, at_once=1) as those:
        those[1].task.cancel()
        await settled()
        assert awake(those) == [True, False, False]
        those[0].woken.set()
        await settled()
        assert awake(those) == [True, False, True]
