"""A guest that says all it can is read as fast as it comes when it is alone, and in turns beside
others; nothing that it says is lost, and nobody who asks another waits for it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests import fake_guest
from tests.fake_host import OWNER, add_template, opened, wanted
from tests.standing import stand
from tests.unit.disked_host import DISK_BYTES
from tests.unit.test_agent_link import DATA, MESSAGE, frame, hostile, synchronise
from vmpool.agent import Agent, Airtime, client, connect, link
from vmpool.agent.airtime import (
    ALLOWANCE_BYTES,
    CHUNK,
    EVENT_BYTES,
    PORTION,
    SECOND_BYTES,
    SILENCE,
    Share,
)
from vmpool.lifecycle import Keep, OnStop
from vmpool.model import Command, Output, SerialAddress
from vmpool_agent import wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path
    from typing import Any

    from tests.fakes import FakeEngine

RATE = 1000.0


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Stage:
    """Some who share, and their clock."""

    def __init__(self, count: int) -> None:
        self.clock = Clock()
        airtime = Airtime(rate_bytes=RATE, clock=self.clock)
        self.airtime = airtime
        self.shares = [airtime.share() for _ in range(count)]


def exhaust(share: Share) -> None:
    share.spend(ALLOWANCE_BYTES, events=0, seconds=0.0)


def test_who_is_alone_never_rests_and_owes_nothing_later() -> None:
    stage = Stage(2)
    loud, other = stage.shares
    for _ in range(5):
        exhaust(loud)
        assert loud.rest == 0
        assert loud.portion == CHUNK
    other.asked()
    assert loud.portion == PORTION
    stage.clock.now += PORTION / RATE / 1000
    assert loud.rest == 0  # what it said while it was alone is forgotten


def test_who_says_much_rests_while_another_is_asked_and_no_longer() -> None:
    stage = Stage(2)
    loud, other = stage.shares
    other.asked()
    exhaust(loud)
    assert loud.rest > 0
    stage.clock.now += SILENCE
    assert loud.rest == 0


def test_who_says_little_never_rests() -> None:
    stage = Stage(2)
    for _ in range(1000):
        stage.clock.now += 0.1
        for share in stage.shares:
            share.spend(10, events=0, seconds=0.0)
            assert share.rest == 0


def test_who_has_said_much_and_is_silent_now_takes_nothing_of_the_rate() -> None:
    stage = Stage(50)
    for share in stage.shares:
        exhaust(share)
        stage.clock.now += SILENCE
        assert share.rest == 0
    for share in stage.shares:
        exhaust(share)  # beside all the others, and never heard again
    assert stage.airtime.rate == RATE / 50
    stage.clock.now += 1
    assert stage.airtime.rate == RATE


def test_who_owes_much_is_read_again_as_soon_as_who_owes_a_little() -> None:
    stage = Stage(2)
    loud, other = stage.shares
    loud.spend(0, events=100_000, seconds=100.0)
    rests = 0.0
    while True:
        other.asked()
        if not (rest := loud.rest):
            break
        stage.clock.now += rest
        rests += rest
    assert rests <= (ALLOWANCE_BYTES + 2 * PORTION) / RATE


def test_those_who_all_say_much_do_not_wait_for_each_other() -> None:
    stage = Stage(2)
    for share in stage.shares:
        exhaust(share)
    stage.clock.now += SILENCE
    for share in stage.shares:
        share.spend(CHUNK, events=1, seconds=0.0)
    assert [share.rest for share in stage.shares] == [0, 0]


@pytest.mark.parametrize("loud", [1, 2, 4])
def test_those_who_say_much_have_one_rate_together(loud: int) -> None:
    stage = Stage(loud + 1)
    *louds, other = stage.shares
    for share in louds:
        exhaust(share)
    said = 0
    for _ in range(2000):
        stage.clock.now += 0.01
        other.asked()
        for share in louds:
            if not share.rest:
                share.spend(100, events=0, seconds=0.0)
                said += 100
    assert said == pytest.approx(20 * RATE, rel=0.1)


@pytest.mark.parametrize(
    ("events", "seconds"), [(1, 0.0), (0, EVENT_BYTES / SECOND_BYTES)], ids=["events", "work"]
)
def test_small_pieces_count_by_what_they_take(events: int, seconds: float) -> None:
    stage = Stage(2)
    loud, other = stage.shares
    for _ in range(ALLOWANCE_BYTES // EVENT_BYTES):
        other.asked()
        assert loud.rest == 0
        loud.spend(1, events=events, seconds=seconds)
    other.asked()
    assert loud.rest > 0


@asynccontextmanager
async def flooding(
    tmp_path: Path, payload: bytes, airtime: Airtime
) -> AsyncIterator[tuple[Agent, list[int]]]:
    """Play a guest that says the same over and over, as the window allows.

    Yields:
        Its agent, and one number: how many bytes it got rid of.
    """
    got_rid_of = [0]

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = wire.Connection(wire.Role.AGENT, lambda _key: True)
        while not connection.synchronised:
            connection.receive(await reader.read(CHUNK))
        writer.write(connection.take())
        while not connection.receive(await reader.read(CHUNK)):
            pass
        connection.send_message(1, memoryview(b'{"type":"started","pid":1}'))
        while True:
            while connection.capacity(1) >= len(payload):
                connection.send_data(1, wire.STDOUT, payload)
                got_rid_of[0] += len(payload)
            writer.write(connection.take())
            await writer.drain()
            if not (answer := await reader.read(CHUNK)):
                return
            connection.receive(answer)

    async with (
        hostile(tmp_path, script) as address,
        await connect(address, key=fake_guest.KEY, timeout=30, airtime=airtime) as agent,
    ):
        yield agent, got_rid_of


async def test_a_flood_beside_somebody_who_is_asked_says_its_allowance_and_no_more(
    tmp_path: Path,
) -> None:
    """The clock stands still: there is no more for the flood, however long this takes."""
    airtime = Airtime(clock=Clock())
    with fake_guest.running(tmp_path) as path:
        neighbour = await connect(
            SerialAddress(path=path), key=fake_guest.KEY, timeout=30, airtime=airtime
        )
        async with (
            neighbour,
            flooding(tmp_path, b"0" * wire.MAX_PAYLOAD, airtime) as (flood, got_rid_of),
        ):
            await neighbour.stat("/", user="user")
            read = 0
            async with flood.execute(Command(argv=("yes",))) as execution:
                reading = asyncio.create_task(_count(execution, counted := [0]))
                for _ in range(50):
                    assert (await neighbour.stat("/", user="user")).path == "/"
                    read = counted[0]
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
    assert 0 < read <= ALLOWANCE_BYTES + PORTION
    assert got_rid_of[0] <= ALLOWANCE_BYTES + 2 * wire.WINDOW


async def test_a_flood_that_had_to_wait_comes_whole(tmp_path: Path) -> None:
    airtime = Airtime(rate_bytes=64 << 20)
    other = airtime.share()
    async with flooding(tmp_path, bytes(range(256)) * 64, airtime) as (flood, _):
        said = b""
        async with flood.execute(Command(argv=("yes",))) as execution:
            async for event in execution:
                other.asked()
                said += event.data if isinstance(event, Output) else b""
                if len(said) > 4 * ALLOWANCE_BYTES:
                    break
    assert said == (bytes(range(256)) * (len(said) // 256))


async def test_small_events_that_wait_already_leave_turns_to_others(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronise(reader, writer)
        await reader.read(CHUNK)
        writer.write(frame(MESSAGE, 1, b'{"type":"started","pid":1}'))
        writer.write(frame(DATA, 1, b"x", stream=1) * 1000)
        await reader.read()

    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn)

    async with (
        hostile(tmp_path, script) as address,
        await connect(address, key=fake_guest.KEY, timeout=30) as agent,
        agent.execute(Command(argv=("x",))) as execution,
    ):
        while agent._link.held < 1000 * (wire.FRAME_COST + 1):  # noqa: ASYNC110 nothing tells
            await asyncio.sleep(0)
        await anext(execution)
        turn()
        for _ in range(1000):
            await anext(execution)
        assert turns >= 1000 // 16


async def test_all_guests_of_a_host_share_from_their_first_word_on(
    state: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand(monkeypatch)
    links: list[Airtime | None] = []
    opening = link.open_link

    async def opened_link(*what: Any, airtime: Airtime | None = None, **how: Any) -> link.Link:
        links.append(airtime)
        return await opening(*what, airtime=airtime, **how)

    async with opened(state, engine, on_stop=OnStop.KEEP) as host:
        await add_template(host, disk_bytes=DISK_BYTES)
        monkeypatch.setattr(client, "open_link", opened_link)
        made = await host.create(wanted(), owner=OWNER)
        for keep in (Keep.MEMORY, Keep.DISK):
            await host.pause(made.id, owner=OWNER, keep=keep)
            await host.resume(made.id, owner=OWNER, timeout=None)
        assert len(links) == 4  # of a boot there are two
        (airtime,) = set(links)
    async with opened(state, engine) as host:
        assert [each.id for each in host.sandboxes(owner=OWNER)] == [made.id]
        (another,) = set(links[4:])
    assert None not in {airtime, another}


async def _count(execution: AsyncIterator[object], counted: list[int]) -> None:
    async for event in execution:
        counted[0] += len(event.data) if isinstance(event, Output) else 0
