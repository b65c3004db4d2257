"""The agent's `connect`, over a real stream, to servers on this machine's loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from tests.connected_agent import connected
from vmpool.agent import Agent
from vmpool.agent.tunnel import Tunnel
from vmpool.errors import TaskError
from vmpool_agent import wire

pytestmark = pytest.mark.shares_host

BIG = bytes(range(256)) * 20_000

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
async def agent(guest: Path) -> AsyncIterator[Agent]:
    async with asyncio.timeout(30), connected(guest) as connection:
        yield connection


@contextlib.asynccontextmanager
async def listening(talk: Talk, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """Listen on a port, which is yielded; every connection is closed when its talk is over."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await talk(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, host, 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def received(tunnel: Tunnel) -> bytes:
    """Return all that comes until the peer sends no more."""
    whole = bytearray()
    while data := await tunnel.receive():
        whole += data
    return bytes(whole)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_bytes_go_both_ways_and_each_way_ends_by_itself(agent: Agent, host: str) -> None:
    async def echo_backwards(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello ")
        whole = await reader.read()
        writer.write(whole[::-1])
        await writer.drain()

    async with listening(echo_backwards, host) as port, agent.reach(port) as tunnel:
        assert await tunnel.receive() == b"hello "
        async with asyncio.TaskGroup() as group:
            receiving = group.create_task(received(tunnel))
            assert await tunnel.send(BIG)
            tunnel.finish()
        assert receiving.result() == BIG[::-1]


async def test_a_peer_that_sends_no_more_may_still_be_sent_to(agent: Agent) -> None:
    taken: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def say_then_listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        taken.set_result(await reader.read())

    async with listening(say_then_listen) as port, agent.reach(port) as tunnel:
        assert await tunnel.receive() == b""
        assert await tunnel.send(BIG)
        tunnel.finish()
        assert await taken == BIG


async def test_nothing_listening_is_told_in_words(agent: Agent) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(TaskError) as caught:
            async with agent.reach(port):
                pytest.fail("it was reached")
    assert caught.value.error_code == "port_closed"
    assert caught.value.remedy


async def test_a_reset_is_told_behind_what_came_before_it(agent: Agent) -> None:
    async def say_and_reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"half")
        await writer.drain()
        await reader.read(1)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async with listening(say_and_reset) as port, agent.reach(port) as tunnel:
        assert await tunnel.receive() == b"half"
        await tunnel.send(b"x")
        with pytest.raises(TaskError) as caught:
            await tunnel.receive()
    assert caught.value.error_code == "connection_reset"


async def test_a_tunnel_that_is_left_resets_the_connection_in_the_guest(agent: Agent) -> None:
    ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def wait_for_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(2)
        except ConnectionResetError:
            ended.set_result("reset")
        except asyncio.IncompleteReadError:
            ended.set_result("end")

    async with listening(wait_for_the_end) as port:
        async with agent.reach(port) as tunnel:
            await tunnel.send(b"x")
        assert await ended == "reset"


async def test_a_slow_reader_holds_the_sender_back(agent: Agent) -> None:
    sent = 0
    full = asyncio.Event()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.transport.set_write_buffer_limits(0)
        options = writer.get_extra_info("socket")
        options.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        while sent < 64 << 20:
            writer.write(bytes(1 << 16))
            try:
                async with asyncio.timeout(3.0):
                    await writer.drain()
            except TimeoutError:
                full.set()
                await writer.drain()
            sent += 1 << 16

    async with listening(flood) as port, agent.reach(port) as tunnel:
        await full.wait()
        # Windows of the channel and of TCP, and not the flood.
        assert wire.WINDOW // 2 < sent < 32 << 20
        assert await tunnel.receive()


async def test_a_sender_that_nobody_reads_is_held_back(agent: Agent) -> None:
    reading = asyncio.Event()

    async def read_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await reading.wait()
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        whole = await reader.read()
        writer.write(str(len(whole)).encode())
        await writer.drain()

    async with listening(read_late) as port, agent.reach(port) as tunnel:
        flood = asyncio.create_task(tunnel.send(bytes(64 << 20)))
        done, _ = await asyncio.wait({flood}, timeout=0.5)
        assert not done
        reading.set()
        assert await flood
        tunnel.finish()
        assert await received(tunnel) == str(64 << 20).encode()


async def test_many_connections_do_not_mix(agent: Agent) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.read())
        await writer.drain()

    async def ask(port: int, number: int) -> None:
        said = str(number).encode() * 20_000
        async with agent.reach(port) as tunnel:
            await tunnel.send(said)
            tunnel.finish()
            assert await received(tunnel) == said

    async with listening(echo) as port, asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(ask(port, number))


@pytest.mark.parametrize("port", [0, 65536, True, "80", None])
async def test_what_is_no_port_is_refused(agent: Agent, port: object) -> None:
    async with agent._link.open() as channel:
        await channel.send_message({"op": "connect", "port": port})
        event = await channel.receive()
    assert isinstance(event, wire.Message)
    assert b"bad_request" in event.document
