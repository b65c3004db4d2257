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
from vmpool.agent import Agent, Peer, asking, client, connect, link
from vmpool.errors import GuestError, InvalidRequestError, TooLargeError
from vmpool.model import Code, Command, Exited, Identity, SerialAddress, Unique
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
    connection = wire.Connection(wire.Role.AGENT, lambda _key: True)
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
    async with await connect(address, key=fake_guest.KEY, timeout=5) as agent:
        with pytest.raises(GuestError) as raised:
            await started(agent)
    assert raised.value.error_code == code


async def test_a_connection_that_hangs_is_given_up_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, tries = link._open_stream, 0

    async def hang_once(
        address: SerialAddress,
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        nonlocal tries
        tries += 1
        if tries == 1:
            await asyncio.Event().wait()
        return await real(address)

    monkeypatch.setattr(link, "_CONNECT", 0.01)
    monkeypatch.setattr(link, "_open_stream", hang_once)
    with fake_guest.running(tmp_path) as path:
        address = SerialAddress(path=path)
        async with await connect(address, key=fake_guest.KEY, timeout=10) as agent:
            assert (await agent.stat("/", user="user")).path == "/"
    assert tries > 1


async def test_nobody_there_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(GuestError) as raised:
        await connect(SerialAddress(path=tmp_path / "none"), key=fake_guest.KEY, timeout=0.05)
    assert raised.value.error_code == "guest_unreachable"
    assert "FileNotFoundError" in str(raised.value)


async def test_a_guest_that_accepts_and_never_answers_is_unreachable(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass

    async with hostile(tmp_path, script) as address:
        with pytest.raises(GuestError) as raised:
            await connect(address, key=fake_guest.KEY, timeout=0.1)
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

    async with (
        hostile(tmp_path, script) as address,
        await connect(address, key=fake_guest.KEY, timeout=5),
    ):
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
                await connect(address, key=fake_guest.KEY, timeout=30)
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


async def test_a_guest_that_sends_more_of_a_file_than_was_asked_for_is_cut_off(
    tmp_path: Path,
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronise(reader, writer)
        await reader.read(65536)
        writer.write(frame(DATA, 1, bytes(64), stream=1) + frame(DATA, 1, b"x", stream=1))
        await reader.read()

    async with (
        hostile(tmp_path, script) as address,
        await connect(address, key=fake_guest.KEY, timeout=30) as agent,
    ):
        pieces = agent.read_file("/x", user="user", length=64)
        assert await anext(pieces) == bytes(64)
        with pytest.raises(GuestError) as raised:
            await anext(pieces)
    assert raised.value.error_code == "guest_protocol"


async def test_an_error_text_from_the_guest_is_cut_and_can_be_encoded(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronise(reader, writer)
        await reader.read(65536)
        text = b"\\ud800" * 5000
        writer.write(frame(MESSAGE, 1, b'{"type":"error","code":"x","message":"%s"}' % text))
        await reader.read()

    async with (
        hostile(tmp_path, script) as address,
        await connect(address, key=fake_guest.KEY, timeout=5) as agent,
    ):
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
        await connect(address, key=fake_guest.KEY, timeout=5) as agent,
        agent.execute(Command(argv=("x",))) as execution,
    ):
        await agent.wait_closed()
        kept = len(execution._channel._events)
    assert 0 < kept <= wire.WINDOW // 1000 < sent


async def test_a_guest_that_goes_away_is_lost_to_all_who_wait(tmp_path: Path) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronise(reader, writer)
        await reader.read(65536)

    async with (
        hostile(tmp_path, script) as address,
        await connect(address, key=fake_guest.KEY, timeout=5) as agent,
    ):
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

    async with (
        hostile(tmp_path, script) as address,
        await connect(address, key=fake_guest.KEY, timeout=5) as agent,
    ):
        with pytest.raises(GuestError) as raised:
            await agent.identify(Identity.fresh("h"), rng=Unique(), timeout=0.05)
    assert raised.value.error_code == "guest_unresponsive"


async def test_a_host_that_left_inside_a_frame_is_followed_by_one_that_works(
    tmp_path: Path,
) -> None:
    with fake_guest.running(tmp_path) as path:
        async with await connect(SerialAddress(path=path), key=fake_guest.KEY, timeout=10) as agent:
            agent._link._writer.write(frame(DATA, 1, bytes(32768))[:100])
        async with (
            await connect(SerialAddress(path=path), key=fake_guest.KEY, timeout=10) as agent,
            agent.execute(Command(argv=("true",))) as execution,
        ):
            assert [event async for event in execution][-1] == Exited(exit_code=0)


async def test_half_a_frame_that_nobody_ends_is_ended_before_the_first_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over virtio-serial an agent need not have noticed that its host is another one."""
    monkeypatch.setattr(link, "_RESYNC", 60.0)
    before, agent = wire.Connection(wire.Role.HOST), wire.Connection(wire.Role.AGENT, bool)
    before.synchronise(bytes(wire.NONCE_SIZE), fake_guest.KEY)
    agent.receive(before.take())
    agent.take()
    assert agent.synchronised
    agent.receive(frame(OPEN, 1) + frame(MESSAGE, 1, b"{}") + frame(DATA, 1, bytes(32768))[:100])

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            agent.receive(data)
            writer.write(agent.take())

    async with (
        hostile(tmp_path, script) as address,
        await connect(address, key=fake_guest.KEY, timeout=5, peer=Peer.USED) as found,
        found._link.open(),
    ):
        assert agent.synchronised


@pytest.mark.parametrize("seed", range(5))
async def test_hostile_hosts_do_not_end_the_agent(tmp_path: Path, seed: int) -> None:
    with fake_guest.running(tmp_path) as path:
        _, writer = await asyncio.open_unix_connection(str(path))
        connection = wire.Connection(wire.Role.HOST)
        connection.synchronise(bytes(16), fake_guest.KEY)
        writer.write(connection.take())
        for document in (b"[", b"{}", b'{"op":"exec"}', b'{"op":["x"]}', b'{"op":"read"}'):
            writer.write(frame(OPEN, 1) + frame(MESSAGE, 1, document) + os.urandom(200 * seed))
        writer.write(bytes([seed]) * 100_000)
        writer.close()
        await writer.wait_closed()
        async with await connect(SerialAddress(path=path), key=fake_guest.KEY, timeout=10) as agent:
            assert (await agent.stat("/", user="user")).path == "/"


async def test_closing_is_idempotent_and_ends_the_reader(tmp_path: Path) -> None:
    with fake_guest.running(tmp_path) as path:
        agent = await connect(SerialAddress(path=path), key=fake_guest.KEY, timeout=10)
        await agent.close()
        await agent.close()
        await agent.wait_closed()


async def test_an_identity_is_set_and_read_back(tmp_path: Path) -> None:
    with fake_guest.running(tmp_path) as path:
        async with await connect(SerialAddress(path=path), key=fake_guest.KEY, timeout=10) as agent:
            identity = Identity.fresh("clone-1")
            receipt = await agent.identify(identity, rng=Unique(), timeout=10)
            assert (receipt.hostname, receipt.machine_id) == ("clone-1", identity.machine_id)
            assert receipt.entropy_bits == 512
            assert "random" in receipt.generators
            assert abs(receipt.clock_error_ns) < 5e9
            assert abs(await agent.set_clock(timeout=10)) < 5e9
            await agent.quiesce(timeout=10)


async def test_a_host_name_that_is_none_is_refused(tmp_path: Path) -> None:
    with fake_guest.running(tmp_path) as path:
        async with await connect(SerialAddress(path=path), key=fake_guest.KEY, timeout=10) as agent:
            with pytest.raises(InvalidRequestError):
                await agent.identify(Identity.fresh("not a label"), rng=Unique(), timeout=10)


@asynccontextmanager
async def answering(tmp_path: Path, *documents: bytes) -> AsyncIterator[Agent]:
    """Play a guest that answers the first request with these documents, cut as they must be."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await synchronise(reader, writer)
        await reader.read(65536)
        for document in documents:
            last = (len(document) - 1) // wire.MAX_PAYLOAD * wire.MAX_PAYLOAD
            for at in range(0, last, wire.MAX_PAYLOAD):
                writer.write(frame(PART, 1, document[at : at + wire.MAX_PAYLOAD]))
            writer.write(frame(MESSAGE, 1, document[last:]))
            await writer.drain()
        while await reader.read(65536):
            pass

    async with (
        hostile(tmp_path, script) as address,
        await connect(address, key=fake_guest.KEY, timeout=5) as agent,
    ):
        yield agent


MANY = b"[" + b"[]," * 60_000 + b"[]]"


@pytest.mark.parametrize(
    "extra", [b'"x":' + MANY, b'"code":"\\udcff","x":' + MANY], ids=["fast", "surrogates"]
)
async def test_what_no_answer_holds_becomes_no_objects(tmp_path: Path, extra: bytes) -> None:
    document = b'{"type":"error","message":"m",' + extra + b"}"
    async with answering(tmp_path, document) as agent:
        tracemalloc.start()
        try:
            with pytest.raises(GuestError):
                await agent.quiesce(timeout=5)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 2 << 20


async def test_what_waits_to_be_read_is_kept_as_it_came(tmp_path: Path) -> None:
    document = b'{"type":"result","mime":{},"x":' + MANY + b"}"
    async with (
        answering(tmp_path, b'{"type":"started","pid":1}', document) as agent,
        agent.execute(Command(argv=("x",))) as execution,
    ):
        while not agent._link.held:  # noqa: ASYNC110 nothing tells of what is only kept
            await asyncio.sleep(0)
        assert agent._link.held == len(document) + wire.FRAME_COST
        await anext(execution)
        await anext(execution)
        assert agent._link.held == 0


async def test_a_link_holds_only_so_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "_MAX_HELD", 10_000)
    output = b'{"type":"result","mime":{"a":"%s"}}' % (b"x" * 1000)
    async with (
        answering(tmp_path, b'{"type":"started","pid":1}', *[output] * 20) as agent,
        agent.execute(Command(argv=("x",))),
    ):
        await asyncio.wait_for(agent.wait_closed(), 5)
        with pytest.raises(GuestError, match="wait to be read"):
            agent._link.check()


async def test_a_guests_words_are_one_printable_line(tmp_path: Path) -> None:
    text = b"x\\n2026-01-01 ERROR forged\\u001b[31m\\u202e" + b"y" * 5000
    async with answering(tmp_path, b'{"type":"error","code":"x","message":"%s"}' % text) as agent:
        with pytest.raises(GuestError) as raised:
            await agent.quiesce(timeout=5)
    assert str(raised.value).isprintable()
    assert "forged" in str(raised.value)
    assert len(str(raised.value)) < 1000


async def test_a_request_that_a_guest_does_not_take_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "PATIENCE", 0.05)
    async with answering(tmp_path) as agent:
        with pytest.raises(GuestError) as raised:
            async with asyncio.timeout(30), agent.execute(Code(source="x" * 2 * wire.WINDOW)):
                pass
    assert raised.value.error_code == "guest_unresponsive"


def entries(count: int, path: bytes) -> bytes:
    info = (
        b'{"path":"%s","kind":"file","size_bytes":0,"mode":0,"owner":"","group":"",'
        b'"modified_ns":0,"target":null}' % path
    )
    return b'{"type":"entries","entries":[%s]}' % b",".join([info] * count)


async def test_a_listing_is_bounded_in_bytes(tmp_path: Path) -> None:
    batches = [entries(50, b"x" * 4000)] * 50
    async with answering(tmp_path, *batches) as agent:
        with pytest.raises(TooLargeError) as raised:
            await agent.list_directory("/", user="user")
    assert raised.value.error_code == "too_many_entries"


async def test_a_path_that_no_kernel_makes_is_refused(tmp_path: Path) -> None:
    async with answering(tmp_path, entries(1, b"x" * 4097)) as agent:
        with pytest.raises(GuestError, match="path"):
            await agent.list_directory("/", user="user")


async def test_a_listing_that_never_ends_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_LISTING_DEADLINE", 0.1)
    async with answering(tmp_path, entries(1, b"x")) as agent:
        with pytest.raises(GuestError) as raised:
            async with asyncio.timeout(30):
                await agent.list_directory("/", user="user")
    assert raised.value.error_code == "guest_unresponsive"
