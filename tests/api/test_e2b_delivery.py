"""Answers to E2B's clients that do not take them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vmpool.api import make_app, serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.api.conftest import Serve, Server

SMALL = 4096
"""Bytes that a kernel keeps for a connection, or a few times that: no large answer fits."""


@contextlib.asynccontextmanager
async def tight(server: Server) -> AsyncIterator[Server]:
    """Serve the same host once more, over connections that keep little."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    listening.bind(("127.0.0.1", 0))
    async with serve(make_app(server.host), listening) as address:
        yield replace(server, url=address.url)


async def ask_and_take_nothing(
    asking: socket.socket, server: Server, line: str, headers: dict[str, str], body: bytes = b""
) -> None:
    loop = asyncio.get_running_loop()
    asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
    asking.setblocking(False)
    host, port = server.url.removeprefix("http://").split(":")
    await loop.sock_connect(asking, (host, int(port)))
    headers = {"Host": host, "Content-Length": str(len(body)), **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    await loop.sock_sendall(asking, f"{line} HTTP/1.1\r\n{head}\r\n".encode() + body)


async def given_up(server: Server, route: str) -> None:
    """Return once a client was, on a route."""
    wanted = f'vmpool_requests_total{{code="client_stalled",route="{route}"}} 1.0'
    async with asyncio.timeout(60):
        while wanted not in (await server.call("GET", "/metrics"))[1].decode():
            pass


async def made(server: Server, **body: Any) -> dict[str, Any]:
    headers = {"X-API-KEY": server.token}
    body = {"templateID": "python", **body}
    status, answer = await server.call("POST", "/v2/sandboxes", headers=headers, json=body)
    assert status == 201, answer
    return dict(answer)


async def test_a_client_that_does_not_take_a_list_is_given_up(serving: Serve) -> None:
    async with serving(stall_timeout=0.3) as server, tight(server) as slow:
        await made(server, metadata={str(number): "\U0001f40c" * 1024 for number in range(64)})
        with socket.socket() as asking:
            key = {"X-API-KEY": server.token}
            await ask_and_take_nothing(asking, slow, "GET /v2/sandboxes", key)
            await given_up(server, "/v2/sandboxes")


async def test_a_client_that_does_not_take_what_a_guest_says_is_given_up(
    serving: Serve, tmp_path: Path
) -> None:
    for number in range(1000):
        (tmp_path / f"{number:0200}").touch()
    async with serving(stall_timeout=0.3) as server, tight(server) as slow:
        sandbox = await made(server)
        headers = {
            "E2b-Sandbox-Id": sandbox["sandboxID"],
            "X-Access-Token": sandbox["envdAccessToken"],
            "Content-Type": "application/json",
        }
        line, body = "POST /filesystem.Filesystem/ListDir", json.dumps({"path": str(tmp_path)})
        with socket.socket() as asking:
            await ask_and_take_nothing(asking, slow, line, headers, body.encode())
            await given_up(server, "e2b 49983 /filesystem.Filesystem/ListDir")
