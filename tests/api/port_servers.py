"""Servers behind ports, friendly and hostile, and sandboxes whose ports are this machine's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from tests.api.conftest import Serve, Server
from vmpool.config import ApiSettings

DOMAIN = "box.example"

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@dataclass
class Sandbox:
    """A sandbox and its ports, which are those of this machine."""

    server: Server
    id: str
    access_token: str

    def path(self, port: int, below: str = "") -> str:
        return f"/v1/sandboxes/{self.id}/ports/{port}/{below}"

    async def call(self, method: str, port: int, below: str = "", **request: Any) -> Any:
        return await self.server.call(method, self.path(port, below), **request)

    def ask(self, method: str, port: int, below: str = "", **request: Any) -> Any:
        """Send a request; the response is a block of its own."""
        return self.server.session.request(
            method, self.server.url + self.path(port, below), **request
        )

    async def publish(self, port: int, access: str = "public") -> None:
        path = f"/v1/sandboxes/{self.id}/ports/{port}"
        status, answer = await self.server.call("PUT", path, json={"access": access})
        assert (status, answer["access"]) == (200, access)


async def made(server: Server, **body: Any) -> Sandbox:
    answer = await server.make_sandbox(**body)
    return Sandbox(server, answer["id"], answer["access_token"])


@pytest.fixture
async def sandbox(serving: Serve) -> AsyncIterator[Sandbox]:
    """Yield a sandbox of a server whose ports have names."""
    api = ApiSettings(domain=DOMAIN, port_connections=120)
    async with asyncio.timeout(90), serving(api=api) as server:
        yield await made(server)


@pytest.fixture
async def impatient(serving: Serve) -> AsyncIterator[Sandbox]:
    """Yield a sandbox of a server that waits for what listens in it for a second."""
    async with asyncio.timeout(90), serving(api=ApiSettings(port_silence=1.0)) as server:
        yield await made(server)


@contextlib.asynccontextmanager
async def listening(talk: Talk) -> AsyncIterator[int]:
    """Listen; every connection is closed when its talk is over."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await talk(reader, writer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@contextlib.asynccontextmanager
async def saying(answer: bytes) -> AsyncIterator[int]:
    """Answer every request with the same bytes, whatever they mean."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()

    async with listening(talk) as port:
        yield port


@contextlib.asynccontextmanager
async def application(handler: Handler) -> AsyncIterator[int]:
    """Serve all requests with a handler."""
    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def mirror(request: web.BaseRequest) -> web.StreamResponse:
    """Tell what was asked."""
    seen = {
        "method": request.method,
        "target": request.raw_path,
        "headers": {name.lower(): value for name, value in request.headers.items()},
        "body": (await request.read()).decode(),
    }
    return web.json_response(seen)


async def websocket_echo(request: web.BaseRequest) -> web.StreamResponse:
    opened = web.WebSocketResponse(protocols=("chat",))
    await opened.prepare(request)
    async for message in opened:
        if message.type is WSMsgType.TEXT:
            await opened.send_str(f"{request.rel_url.path}: {message.data}")
        else:
            await opened.send_bytes(message.data)
    return opened
