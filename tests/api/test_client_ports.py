"""Ports of a sandbox, through both Python clients and on the command line."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

import vmpool
from tests.api.port_servers import application, listening, mirror, saying
from tests.api.test_cli import Terminal
from tests.blocking_twin import Twin
from vmpool.client import blocking_ports, ports
from vmpool.errors import HostError, VmpoolError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.conftest import Server

GRACE = 60.0
BIG = bytes(range(256)) * 20_000


@pytest.fixture(params=["asynchronous", "blocking"])
async def client(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Any]:
    """A client of either kind."""
    make: Callable[..., Any] = vmpool.AsyncClient
    if request.param == "blocking":
        make = lambda *words, **options: Twin(vmpool.Client(*words, **options))  # noqa: E731
    async with make(server.url, token=server.token) as made, asyncio.timeout(GRACE):
        yield made


@pytest.fixture
async def sandbox(client: Any) -> AsyncIterator[Any]:
    """A sandbox through it."""
    async with client.sandbox() as made:
        yield made


async def status_of(url: str, **headers: str) -> int:
    async with aiohttp.ClientSession(headers=headers) as session, session.get(url) as response:
        return response.status


async def test_a_port_is_named_opened_and_closed_again(sandbox: Any, server: Server) -> None:
    async with application(mirror) as number:
        port = sandbox.ports[number]
        assert port.url == f"{server.url}/v1/sandboxes/{sandbox.id}/ports/{number}/"
        assert await status_of(port.url) == 401
        assert await status_of(port.url, Authorization=f"Bearer {server.token}") == 200
        token = await port.token()
        assert await status_of(port.url, **{"vmpool-traffic-token": token.token}) == 200
        assert (token.port, token.token in repr(token)) == (number, False)
        assert (await port.publish()).access == "public"
        assert await status_of(port.url) == 200
        assert (await port.conceal()).access == "private"
        assert (await port.look()).host is None
        assert (await sandbox.ports.publish()).access == "public"
        assert await status_of(port.url) == 200
        listed = await sandbox.ports.conceal()
        assert [one.id for one in listed.tokens] == [token.id]
        for _ in range(2):
            await sandbox.ports.revoke(token)
        assert await status_of(port.url, **{"vmpool-traffic-token": token.token}) == 401
        every = await sandbox.ports.token()
        assert every.port is None
        await sandbox.ports.revoke(every.id)
        assert (await sandbox.ports.list()).tokens == ()


async def test_a_port_is_public_from_the_start(client: Any) -> None:
    async with application(mirror) as number, client.sandbox(public_ports=[number]) as sandbox:
        assert await status_of(sandbox.ports[number].url) == 200
        assert await status_of(sandbox.ports[number % 65535 + 1].url) == 401


async def test_a_port_of_this_machine_leads_to_one_of_the_sandbox(sandbox: Any) -> None:
    async def backwards(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read())[::-1])
        await writer.drain()

    async def ask(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
        said = BIG + str(number).encode()
        writer.write(said)
        writer.write_eof()
        assert await reader.read() == said[::-1]
        writer.close()
        await writer.wait_closed()

    async with listening(backwards) as number, sandbox.forward(number) as here:
        await asyncio.gather(*(ask(one) for one in range(4)))
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", here.port)


async def test_a_connection_that_cannot_be_made_is_told_and_reset(sandbox: Any) -> None:
    loop = asyncio.get_running_loop()
    told: asyncio.Future[VmpoolError] = loop.create_future()
    async with saying(b"") as number:
        pass
    port = sandbox.ports[number]

    def on_failure(error: VmpoolError) -> None:
        loop.call_soon_threadsafe(told.set_result, error)

    async with port.forward(on_failure=on_failure) as here:
        reader, writer = await asyncio.open_connection(here.host, here.port)
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        assert (await told).error_code == "port_closed"
        writer.close()


async def test_what_is_taken_here_cannot_be_forwarded(sandbox: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(HostError) as caught:
        async with sandbox.forward(8000, taken.getsockname()[1]):
            pytest.fail("it was forwarded")
    assert caught.value.error_code == "address_unusable"


@pytest.mark.parametrize("name", ["Ports", "Port"])
def test_the_blocking_twin_has_every_method_under_the_same_arguments(name: str) -> None:
    asynchronous = getattr(ports, f"Async{name}")
    twin = getattr(blocking_ports, name)
    for word, method in inspect.getmembers(asynchronous, inspect.isfunction):
        if not word.startswith("_"):
            ours = inspect.signature(getattr(twin, word)).parameters
            assert list(ours) == list(inspect.signature(method).parameters), word


# On the command line.


@pytest.fixture
def terminal(server: Server, tmp_path: Path) -> Terminal:
    return Terminal(
        {
            "VMPOOL_SERVER": server.url,
            "VMPOOL_TOKEN": server.token,
            "VMPOOL_STATE": os.fspath(tmp_path / "state"),
        }
    )


async def test_url_prints_where_a_port_is_and_opens_it(terminal: Terminal, server: Server) -> None:
    id = (await server.make_sandbox())["id"]
    async with application(mirror) as number:
        url = f"{server.url}/v1/sandboxes/{id}/ports/{number}/"
        assert await terminal.succeed("url", id, str(number)) == f"{url}\n".encode()
        token = (await terminal.succeed("url", "--traffic-token", id, str(number))).decode().strip()
        assert await status_of(url, **{"vmpool-traffic-token": token}) == 200
        shown = json.loads(await terminal.succeed("url", "--public", "--json", id, str(number)))
        assert (shown["url"], shown["access"]) == (url, "public")
        assert await status_of(url) == 200


async def test_a_sandbox_is_created_with_public_ports(terminal: Terminal, server: Server) -> None:
    ports = ("--public-port", "8000", "--public-port", "1")
    id = (await terminal.succeed("sandbox", "create", *ports)).decode().strip()
    _, listed = await server.call("GET", f"/v1/sandboxes/{id}/ports")
    assert [(each["port"], each["access"]) for each in listed["ports"]] == [
        (1, "public"),
        (8000, "public"),
    ]


async def test_port_forward_leads_there_until_it_is_interrupted(
    terminal: Terminal, server: Server
) -> None:
    id = (await server.make_sandbox())["id"]
    async with (
        asyncio.timeout(GRACE),
        application(mirror) as number,
        terminal.starting("port-forward", id, f"0:{number}") as process,
    ):
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        assert line.endswith(f" to port {number} of {id}\n")
        assert await status_of(f"http://{line.split()[1]}/x") == 200
        process.send_signal(signal.SIGINT)
        _, complaint = await process.communicate()
    assert (process.returncode, b"Traceback" in complaint) == (130, False)


@pytest.mark.parametrize("ports", ["x", "0", "65536", "1:2:3", "1:0", "-1:80"])
async def test_what_names_no_ports_is_refused(terminal: Terminal, ports: str) -> None:
    ended = await terminal.run("port-forward", "any", "--", ports)
    assert ended.code == 2
