"""The link against agents that are hostile, broken, late or gone."""

from __future__ import annotations

import asyncio
import os
import struct
import tracemalloc
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests import fake_guest
from vmpool.agent import Agent, connect
from vmpool.errors import GuestError, InvalidRequestError
from vmpool.model import Command, Exited, Identity, SerialAddress
from vmpool_agent import wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HEADER = struct.Struct("!BBHI")
OPEN, PART, MESSAGE, DATA, FINISH, CLOSE, CREDIT = range(3, 10)


def frame(kind: int, channel: int, payload: bytes = b"", stream: int = 0) -> bytes:
    return HEADER.pack(kind, stream, len(payload), channel) + payload


async def synchronise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    connection = wire.Connection(wire.Role.AGENT)
    while not connection.synchronised:
        connection.receive(await reader.read(65536))
    writer.write(connection.take())


@asynccontextmanager
async def hostile(tmp_path: Path, script: Script) -> AsyncIterator[SerialAddress]:
    """Play a guest that does what the script says."""
    path = tmp_path / "hostile.sock"
    playing: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        playing[task] = writer
        try:
            await script(reader, writer)
        except OSError:
            pass  # the host hung up on us, as it should
        finally:
            writer.transport.abort()

    server = await asyncio.start_unix_server(play, str(path))
    try:
        yield SerialAddress(path=path)
    finally:
        server.close()
        await server.wait_closed()
        for writer in playing.values():
            writer.transport.abort()
        await asyncio.gather(*playing)


async def started(agent: Agent) -> None:
    async with agent.execute(Command(argv=("x",))) as execution:
        async for _ in execution:
            pass


async def expect_failure(address: SerialAddress, code: str) -> None:
    async with await connect(address, timeout=5) as agent:
        with pytest.raises(GuestError) as raised:
            await started(agent)
    assert raised.value.error_code == code


async def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(GuestError) as raised:
        await connect(SerialAddress(path=tmp_path / "none"), timeout=0.05)
    assert raised.value.error_code == "guest_unreachable"
    assert "FileNotFoundError" in str(raised.value)


async def test_a_guest_that_accepts_and_never_answers_is_unreachable(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass

    async with hostile(tmp_path, script) as address:
        with pytest.raises(GuestError) as raised:
            await connect(address, timeout=0.1)
    assert raised.value.error_code == "guest_unreachable"


async def test_connections_that_are_reset_are_tried_again(tmp_path: Path) -> None:
    tries = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            return
        await synchronise(reader, writer)
        await reader.read()

    async with hostile(tmp_path, script) as address, await connect(address, timeout=5):
        assert tries == 3


async def test_a_guest_that_floods_instead_of_answering_is_cut_off(tmp_path: Path) -> None:
    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"\x02" * 65536)
            await writer.drain()

    async with hostile(tmp_path, script) as address:
        tracemalloc.start()
        try:
            with pytest.raises(GuestError) as raised:
                await connect(address, timeout=30)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert raised.value.error_code == "guest_protocol"
    assert peak < 4 << 20


GARBAGE = [
    b"\xff" * 100,
    frame(DATA, 1, b"output before start", stream=1),
    frame(MESSAGE, 1, b"not json"),
    frame(MESSAGE, 1, b"[]"),
    frame(MESSAGE, 1, b'{"type":"started"}'),
    frame(MESSAGE, 1, b'{"type":"started","pid":"1"}'),
    frame(MESSAGE, 1, b'{"type":"unheard of"}'),
    frame(MESSAGE, 1, b'{"type":"started","pid":1}') + frame(MESSAGE, 1, b'{"type":"exited"}'),
    frame(MESSAGE, 1, b'{"type":"started","pid":1}')
    + frame(MESSAGE, 1, b'{"type":"exited","exit_code":256,"signal":null}'),
    frame(MESSAGE, 1, b'{"type":"started","pid":1}')
    + frame(MESSAGE, 1, b'{"type":"result","mime":[]}'),
    frame(MESSAGE, 1, b'{"type":"started","pid":1}') + frame(DATA, 1, b"x", stream=9),
    frame(CLOSE, 1),
    frame(CLOSE, 2),
    frame(DATA, 1, b"x") * 5000,
    frame(DATA, 1, bytes(32768), stream=1) * 9,
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=range(len(GARBAGE)))
async def test_a_guest_that_breaks_the_protocol_gets_a_clear_error(
    tmp_path: Path, garbage: bytes
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronise(reader, writer)
        await reader.read(65536)
        writer.write(garbage)
        await reader.read()

    async with hostile(tmp_path, script) as address:
        await expect_failure(address, "guest_protocol")


async def test_an_error_text_from_the_guest_is_cut_and_can_be_encoded(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronise(reader, writer)
        await reader.read(65536)
        text = b"\\ud800" * 5000
        writer.write(frame(MESSAGE, 1, b'{"type":"error","code":"x","message":"%s"}' % text))
        await reader.read()

    async with hostile(tmp_path, script) as address, await connect(address, timeout=5) as agent:
        with pytest.raises(GuestError) as raised:
            await started(agent)
    assert len(str(raised.value).encode()) < 5000


async def test_a_flood_of_results_is_held_at_the_window(tmp_path: Path) -> None:
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await synchronise(reader, writer)
        await reader.read(65536)
        writer.write(frame(MESSAGE, 1, b'{"type":"started","pid":1}'))
        result = frame(MESSAGE, 1, b'{"type":"result","mime":{"a":"%s"}}' % (b"x" * 1000))
        while True:
            writer.write(result)
            await writer.drain()
            sent += 1

    async with (
        hostile(tmp_path, script) as address,
        await connect(address, timeout=5) as agent,
        agent.execute(Command(argv=("x",))) as execution,
    ):
        await agent.wait_closed()
        kept = len(execution._channel._events)
    assert 0 < kept <= wire.WINDOW // 1000 < sent


async def test_a_guest_that_goes_away_is_lost_to_all_who_wait(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronise(reader, writer)
        await reader.read(65536)

    async with hostile(tmp_path, script) as address, await connect(address, timeout=5) as agent:
        results = await asyncio.gather(
            started(agent),
            agent.stat("x", user="user"),
            agent.quiesce(timeout=5),
            return_exceptions=True,
        )
        await agent.wait_closed()
        with pytest.raises(GuestError):
            await agent.stat("x", user="user")
    assert [e.error_code for e in results if isinstance(e, GuestError)] == ["guest_lost"] * 3


async def test_a_guest_that_does_not_answer_in_time_is_unresponsive(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronise(reader, writer)
        await reader.read()

    async with hostile(tmp_path, script) as address, await connect(address, timeout=5) as agent:
        with pytest.raises(GuestError) as raised:
            await agent.identify(Identity.fresh("h"), timeout=0.05)
    assert raised.value.error_code == "guest_unresponsive"


async def test_a_host_that_left_inside_a_frame_is_followed_by_one_that_works(
    tmp_path: Path,
) -> None:
    with fake_guest.running(tmp_path) as path:
        async with await connect(SerialAddress(path=path), timeout=10) as agent:
            agent._link._writer.write(frame(DATA, 1, bytes(32768))[:100])
        async with (
            await connect(SerialAddress(path=path), timeout=10) as agent,
            agent.execute(Command(argv=("true",))) as execution,
        ):
            assert [event async for event in execution][-1] == Exited(exit_code=0)


@pytest.mark.parametrize("seed", range(5))
async def test_hostile_hosts_do_not_end_the_agent(tmp_path: Path, seed: int) -> None:
    with fake_guest.running(tmp_path) as path:
        _, writer = await asyncio.open_unix_connection(str(path))
        connection = wire.Connection(wire.Role.HOST)
        connection.synchronise(bytes(16))
        writer.write(connection.take())
        for document in (b"[", b"{}", b'{"op":"exec"}', b'{"op":["x"]}', b'{"op":"read"}'):
            writer.write(frame(OPEN, 1) + frame(MESSAGE, 1, document) + os.urandom(200 * seed))
        writer.write(bytes([seed]) * 100_000)
        writer.close()
        await writer.wait_closed()
        async with await connect(SerialAddress(path=path), timeout=10) as agent:
            assert (await agent.stat("/", user="user")).path == "/"


async def test_closing_is_idempotent_and_ends_the_reader(tmp_path: Path) -> None:
    with fake_guest.running(tmp_path) as path:
        agent = await connect(SerialAddress(path=path), timeout=10)
        await agent.close()
        await agent.close()
        await agent.wait_closed()


async def test_an_identity_is_set_and_read_back(tmp_path: Path) -> None:
    with fake_guest.running(tmp_path) as path:
        async with await connect(SerialAddress(path=path), timeout=10) as agent:
            identity = Identity.fresh("clone-1")
            receipt = await agent.identify(identity, timeout=10)
            assert (receipt.hostname, receipt.machine_id) == ("clone-1", identity.machine_id)
            assert receipt.entropy_bits == 512
            assert "random" in receipt.generators
            assert abs(receipt.clock_error_ns) < 5e9
            assert abs(await agent.set_clock(timeout=10)) < 5e9
            await agent.quiesce(timeout=10)


async def test_a_host_name_that_is_none_is_refused(tmp_path: Path) -> None:
    with fake_guest.running(tmp_path) as path:
        async with await connect(SerialAddress(path=path), timeout=10) as agent:
            with pytest.raises(InvalidRequestError):
                await agent.identify(Identity.fresh("not a label"), timeout=10)
