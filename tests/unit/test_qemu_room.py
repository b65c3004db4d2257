"""Room is given in turn, and given back whatever happens."""

from __future__ import annotations

import asyncio

import pytest

from vmpool.engine.qemu.room import Room


class Guests:
    """Tasks that take room until they are told to leave."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self.inside: list[str] = []
        self._leave: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, size_bytes: int) -> None:
        self._leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.ensure_future(self._stay(name, size_bytes))
        await settle()

    async def go(self, name: str) -> None:
        self._leave[name].set()
        await settle()

    async def _stay(self, name: str, size_bytes: int) -> None:
        async with self.room.taken(size_bytes):
            self.inside.append(name)
            try:
                await self._leave[name].wait()
            finally:
                self.inside.remove(name)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_who_comes_first_is_served_first_and_nobody_passes() -> None:
    guests = Guests(Room(100))
    await guests.come("one", 60)
    await guests.come("large", 80)
    await guests.come("small", 10)
    assert guests.inside == ["one"]
    await guests.go("one")
    assert guests.inside == ["large", "small"]
    for name in ("large", "small"):
        await guests.go(name)
    assert guests.room.taken_bytes == 0


async def test_one_that_wants_more_than_all_gets_it_alone() -> None:
    guests = Guests(Room(100))
    await guests.come("one", 10)
    await guests.come("huge", 1000)
    await guests.come("two", 10)
    assert guests.inside == ["one"]
    await guests.go("one")
    assert guests.inside == ["huge"]
    await guests.go("huge")
    assert guests.inside == ["two"]
    await guests.go("two")


@pytest.mark.parametrize("name", ["inside", "first", "second"])
async def test_who_is_cancelled_takes_nothing_along(name: str) -> None:
    guests = Guests(Room(100))
    for each in ("inside", "first", "second"):
        await guests.come(each, 70)
    guests.tasks[name].cancel()
    await settle()
    for each in ("inside", "first", "second"):
        await guests.go(each)
    assert guests.inside == []
    assert guests.room.taken_bytes == 0
    assert [task for task in guests.tasks.values() if not task.done()] == []


async def test_who_is_cancelled_as_it_is_let_in_takes_nothing_along() -> None:
    guests = Guests(Room(100))
    await guests.come("inside", 70)
    await guests.come("next", 70)
    guests._leave["inside"].set()
    await asyncio.sleep(0)
    assert guests.inside == []
    guests.tasks["next"].cancel()
    await settle()
    await guests.come("last", 100)
    assert guests.inside == ["last"]
    await guests.go("last")
    assert guests.room.taken_bytes == 0
