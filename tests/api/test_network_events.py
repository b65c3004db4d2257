"""What was denied is told line by line, kept or to come; packets come as a file that grows."""

from __future__ import annotations

import asyncio
import contextlib
import json
from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result

import vmpool
from tests.blocking_twin import Twin
from vmpool.cli.program import program
from vmpool.errors import ConflictError
from vmpool.network.capture import CaptureLimits
from vmpool.network.events import Denial, EventLog

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable
    from pathlib import Path

    from tests.api.conftest import Server

DENIAL = Denial(
    protocol="tcp",
    destination=IPv4Address("192.0.2.1"),
    port=22,
    name="files.pypi.org",
    rule="unlisted",
)
LINE = {
    "type": "denial",
    "protocol": "tcp",
    "destination": "192.0.2.1",
    "port": 22,
    "name": "files.pypi.org",
    "rule": "unlisted",
}


async def log_of(server: Server, sandbox: str) -> EventLog:
    log = await server.host.networks.denials(sandbox, owner=server.owner)
    assert isinstance(log, EventLog)
    return log


async def lines_of(server: Server, sandbox: str, query: str = "") -> list[dict[str, Any]]:
    url = f"{server.url}/v1/sandboxes/{sandbox}/network/events{query}"
    async with server.session.get(url) as response:
        assert response.content_type == "application/x-ndjson"
        return [json.loads(line) for line in (await response.read()).splitlines()]


def without_time(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in {"at", "cursor"}}


async def test_what_was_denied_is_told_and_asked_for_from_a_cursor(server: Server) -> None:
    sandbox = (await server.make_sandbox())["id"]
    assert await lines_of(server, sandbox) == [{"type": "lost", "count": 0}]
    log = await log_of(server, sandbox)
    log.add(DENIAL)
    log.add(Denial(protocol="dns", destination=None, port=None, name="x.example", rule="dns-name"))
    lost, first, second = await lines_of(server, sandbox)
    assert lost == {"type": "lost", "count": 0}
    assert without_time(first) == LINE
    assert (second["destination"], second["port"], second["rule"]) == (None, None, "dns-name")
    assert first["at"].endswith("Z")
    _, after = await lines_of(server, sandbox, f"?after={first['cursor']}")
    assert after == second
    status, text = await server.call("GET", "/metrics")
    assert status == 200
    assert b'vmpool_network_denials_total{rule="unlisted"} 1.0' in text


async def test_a_follower_is_told_what_comes_and_what_is_lost_up_to_the_end(
    server: Server,
) -> None:
    sandbox = (await server.make_sandbox())["id"]
    log = await log_of(server, sandbox)
    log.add(DENIAL)
    url = f"{server.url}/v1/sandboxes/{sandbox}/network/events?follow=true"
    async with asyncio.timeout(30), server.session.get(url) as response:

        async def line() -> dict[str, Any]:
            return dict(json.loads(await response.content.readline()))

        assert await line() == {"type": "lost", "count": 0}
        assert without_time(await line()) == LINE
        log.lose()
        log.add(DENIAL)
        assert await line() == {"type": "lost", "count": 1}
        assert without_time(await line()) == LINE
        assert (await server.call("DELETE", f"/v1/sandboxes/{sandbox}"))[0] == 204
        assert await response.content.read() == b""


async def test_a_strangers_sandbox_has_no_events_and_no_packets(server: Server) -> None:
    sandbox = (await server.make_sandbox())["id"]
    for what in ("events", "capture"):
        path = f"/v1/sandboxes/{sandbox}/network/{what}"
        status, problem = await server.call("GET", path, headers=server.as_other())
        assert (status, problem["code"]) == (404, "sandbox_not_found")


@pytest.mark.parametrize(
    "query",
    [
        *("events?after=x", "events?after=-1", "events?follow=perhaps", "capture?seconds=0"),
        *("capture?bytes=10", "capture?bytes=many", "capture?seconds=nan"),
    ],
)
async def test_a_query_that_makes_no_sense_is_refused(server: Server, query: str) -> None:
    sandbox = (await server.make_sandbox())["id"]
    status, problem = await server.call("GET", f"/v1/sandboxes/{sandbox}/network/{query}")
    assert (status, problem["code"]) == (400, "invalid_request")


async def test_a_sandbox_without_a_network_has_no_packets(server: Server) -> None:
    sandbox = (await server.make_sandbox())["id"]
    status, problem = await server.call("GET", f"/v1/sandboxes/{sandbox}/network/capture")
    assert (status, problem["code"]) == (409, "network_none")


class PaperServices:
    """Services whose captures have three pieces; notes the limits that they were given."""

    def __init__(self) -> None:
        self.given: list[CaptureLimits] = []
        self.running = False

    @contextlib.asynccontextmanager
    async def capture(self, limits: CaptureLimits) -> AsyncIterator[PaperServices]:
        if self.running:
            raise ConflictError("already", code="capture_running")
        self.given.append(limits)
        self.running = True
        try:
            yield self
        finally:
            self.running = False

    async def pieces(self) -> AsyncGenerator[bytes]:
        for piece in (b"header", b"one", b"two"):
            yield piece


@pytest.fixture
async def connected(server: Server) -> AsyncIterator[PaperServices]:
    """The services of the one sandbox there is, whose network is on paper."""
    await server.make_sandbox()
    [held] = server.host.sandboxes(owner=server.owner)
    services = PaperServices()
    held.clone.connection = SimpleNamespace(services=services)
    yield services
    held.clone.connection = None


async def test_packets_come_as_a_file_within_the_servers_limits(
    server: Server, connected: PaperServices
) -> None:
    [held] = server.host.sandboxes(owner=server.owner)
    path = f"/v1/sandboxes/{held.id}/network/capture"
    for query in ("", "?seconds=0.5&bytes=2048", "?seconds=1e9&bytes=99999999999"):
        async with server.session.get(server.url + path + query) as response:
            assert response.content_type == "application/vnd.tcpdump.pcap"
            assert await response.read() == b"headeronetwo"
    limits = server.host.settings.network
    assert connected.given == [
        CaptureLimits(size_bytes=10 << 20, seconds=60.0),
        CaptureLimits(size_bytes=2048, seconds=0.5),
        CaptureLimits(size_bytes=limits.capture_bytes, seconds=limits.capture_seconds),
    ]
    connected.running = True
    status, problem = await server.call("GET", path)
    assert (status, problem["code"]) == (409, "capture_running")


@pytest.mark.parametrize(
    "make",
    [vmpool.AsyncClient, lambda *words, **options: Twin(vmpool.Client(*words, **options))],
    ids=["asynchronous", "blocking"],
)
async def test_both_clients_read_follow_and_capture(
    server: Server, connected: PaperServices, make: Callable[..., Any], tmp_path: Path
) -> None:
    [held] = server.host.sandboxes(owner=server.owner)
    log = await log_of(server, held.id)
    async with asyncio.timeout(60), make(server.url, token=server.token) as client:
        network = client.attach(held.id).network
        none = await network.events()
        assert (none.events, none.cursor, none.lost) == ((), "0", 0)
        log.lose()
        log.add(DENIAL)
        told = await network.events()
        [first] = told.events
        assert (first.destination, first.port, first.rule) == ("192.0.2.1", 22, "unlisted")
        assert (told.cursor, told.lost) == (first.cursor, 1)
        async with network.follow(after=told.cursor) as denials:
            log.add(DENIAL)
            second = await anext(aiter(denials))
            assert int(second.cursor) > int(first.cursor)
        async with network.capture(seconds=5.0) as pieces:
            assert b"".join([piece async for piece in pieces]) == b"headeronetwo"
        await network.capture_to(tmp_path / "packets.pcap", size_bytes=4096)
        assert (tmp_path / "packets.pcap").read_bytes() == b"headeronetwo"
        assert [limits.size_bytes for limits in connected.given] == [10 << 20, 4096]


async def test_the_command_line_prints_denials_and_writes_packets(
    server: Server, connected: PaperServices
) -> None:
    [held] = server.host.sandboxes(owner=server.owner)
    log = await log_of(server, held.id)
    log.lose()
    log.add(DENIAL)

    async def run(*words: str) -> Result:
        environment = {"VMPOOL_SERVER": server.url, "VMPOOL_TOKEN": server.token}
        command = CliRunner(env=environment).invoke
        ended = await asyncio.to_thread(command, program, words, catch_exceptions=False)
        assert ended.exit_code == 0, ended.output
        return ended

    shown = await run("network", "events", held.id)
    assert "tcp   192.0.2.1:22 files.pypi.org  (unlisted)" in shown.stdout
    assert shown.stderr == "1 more are not kept\n"
    read = json.loads((await run("network", "events", held.id, "--json")).stdout)
    assert without_time(read) == LINE
    assert (await run("network", "events", held.id, "--after", read["cursor"])).stdout == ""
    written = await run("network", "capture", held.id, "--seconds", "2.5", "--bytes", "4096")
    assert written.stdout_bytes == b"headeronetwo"
    assert connected.given == [CaptureLimits(size_bytes=4096, seconds=2.5)]
