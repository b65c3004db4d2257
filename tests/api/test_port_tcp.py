"""TCP to a port of a sandbox over a WebSocket; and what wakes a sandbox, or keeps it awake."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import WSMsgType

from tests.api import port_servers
from tests.api.conftest import Serve
from tests.api.port_servers import (
    Sandbox,
    application,
    listening,
    made,
    mirror,
    saying,
    websocket_echo,
)

GRACE = 20.0


sandbox = port_servers.sandbox


@contextlib.asynccontextmanager
async def carried(sandbox: Sandbox, port: int) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    url = f"{sandbox.server.url}/v1/sandboxes/{sandbox.id}/tcp/{port}"
    async with asyncio.timeout(GRACE), sandbox.server.session.ws_connect(url) as opened:
        yield opened


async def test_any_protocol_is_carried_and_each_way_ends_by_itself(sandbox: Sandbox) -> None:
    async def backwards(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-mine\r\n")
        whole = await reader.read()
        writer.write(whole[::-1])
        await writer.drain()

    async with listening(backwards) as port, carried(sandbox, port) as opened:
        assert await opened.receive_bytes() == b"SSH-2.0-mine\r\n"
        await opened.send_bytes(b"abc")
        await opened.send_bytes(b"def")
        await opened.send_json({"eof": True})
        assert await opened.receive_bytes() == b"fedcba"
        assert await opened.receive_json() == {"eof": True}
        await opened.receive()
    assert opened.close_code == 1000


async def test_a_connection_that_breaks_off_closes_its_socket_with_why(sandbox: Sandbox) -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()

    async with listening(reset) as port, carried(sandbox, port) as opened:
        await opened.send_bytes(b"xy")
        closed = await opened.receive()
    assert (closed.type, closed.data, closed.extra) == (
        WSMsgType.CLOSE, 1008, "connection_reset",
    )  # fmt: skip


async def test_a_port_that_is_closed_is_told_before_the_upgrade(sandbox: Sandbox) -> None:
    async with saying(b"") as port:
        pass
    with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
        async with carried(sandbox, port):
            pytest.fail("it was opened")
    assert caught.value.status == 502
    path = f"/v1/sandboxes/{sandbox.id}/tcp/"
    assert (await sandbox.server.call("GET", f"{path}{port}"))[1]["code"] == "port_closed"
    async with saying(b"") as port:
        status, problem = await sandbox.server.call("GET", f"{path}{port}")
    assert (status, problem["code"]) == (426, "upgrade_required")


async def test_a_sandbox_that_ends_tells_those_who_are_connected(sandbox: Sandbox) -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        await reader.read()

    async with listening(wait) as port, carried(sandbox, port) as opened:
        await opened.receive_bytes()
        assert (await sandbox.server.call("DELETE", f"/v1/sandboxes/{sandbox.id}"))[0] == 204
        closed = await opened.receive()
    assert (closed.data, closed.extra) == (1008, "sandbox_ended")


async def as_nobody(sandbox: Sandbox, port: int) -> int:
    """Ask without a token; return the status."""
    url = sandbox.server.url + sandbox.path(port)
    async with aiohttp.ClientSession() as stranger, stranger.get(url) as response:
        return response.status


async def test_a_request_wakes_a_sandbox_that_is_to_wake(serving: Serve) -> None:
    async with serving() as server, application(mirror) as port:
        sandbox = await made(server, auto_resume=True)
        await sandbox.publish(port)
        path = f"/v1/sandboxes/{sandbox.id}"
        assert (await server.call("POST", f"{path}/pause", json={}))[0] == 200
        assert (await sandbox.call("GET", port))[0] == 200
        assert (await server.call("GET", path))[1]["state"] == "running"
        assert (await server.call("POST", f"{path}/pause", json={}))[0] == 200
        assert (await as_nobody(sandbox, port)) == 200
        deaf = await made(server)
        await server.call("POST", f"/v1/sandboxes/{deaf.id}/pause", json={})
        assert (await deaf.call("GET", port))[1]["code"] == "sandbox_paused"


async def test_traffic_is_use_and_an_open_connection_is_not(sandbox: Sandbox) -> None:
    async with application(websocket_echo) as port, asyncio.timeout(GRACE):
        held = await sandbox.server.host.sandbox(sandbox.id, owner=sandbox.server.owner)
        url = sandbox.server.url + sandbox.path(port)
        async with sandbox.server.session.ws_connect(url) as opened:
            held._quiet_since -= 1000
            assert held.quiet_seconds > 1000
            await opened.send_str("x")
            await opened.receive_str()
            assert held.quiet_seconds < 1000
