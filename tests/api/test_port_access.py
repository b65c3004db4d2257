"""Who may reach a port of a sandbox, under which address, and what that opens of ours."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import aiohttp
from yarl import URL

from tests.api import port_servers
from tests.api.conftest import Serve
from tests.api.port_servers import (
    DOMAIN,
    Sandbox,
    application,
    made,
    mirror,
    saying,
    websocket_echo,
)
from vmpool.config import ApiSettings
from vmpool.errors import DiskFullError

if TYPE_CHECKING:
    import pytest

GRACE = 20.0


sandbox = port_servers.sandbox


async def told(sandbox: Sandbox, port: int, headers: dict[str, str]) -> tuple[int, Any]:
    """Ask as nobody, with these headers."""
    async with aiohttp.ClientSession() as stranger:
        url = sandbox.server.url + sandbox.path(port)
        async with stranger.get(url, headers=headers) as response:
            return response.status, await response.json(content_type=None)


async def test_a_port_is_private_until_it_is_made_public(sandbox: Sandbox) -> None:
    async with application(mirror) as port:
        assert (await told(sandbox, port, {}))[1]["code"] == "token_missing"
        await sandbox.publish(port)
        assert (await told(sandbox, port, {}))[0] == 200
        assert (await told(sandbox, port + 1 if port < 65535 else 1, {}))[0] == 401
        await sandbox.publish(port, "private")
        assert (await told(sandbox, port, {}))[0] == 401


async def test_ports_are_public_from_the_start_when_their_sandbox_is_made_so(
    sandbox: Sandbox,
) -> None:
    async with application(mirror) as port:
        open_one = await made(sandbox.server, public_ports=[port, 1, port])
        assert (await told(open_one, port, {}))[0] == 200
        assert (await told(sandbox, port, {}))[0] == 401
        _, listed = await sandbox.server.call("GET", f"/v1/sandboxes/{open_one.id}/ports")
        assert listed["access"] == "private"
        shown = {each["port"]: each["access"] for each in listed["ports"]}
        assert shown == {1: "public", port: "public"}


async def test_there_is_no_sandbox_whose_ports_could_not_be_opened(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object) -> None:
        raise DiskFullError("no room")

    server = sandbox.server
    before = {each.id for each in server.host.sandboxes(owner=server.owner)}
    monkeypatch.setattr(server.host.store.exposures, "save", full)
    status, answer = await server.call("POST", "/v1/sandboxes", json={"public_ports": [8000]})
    assert (status, answer["code"]) == (507, "host_disk_full")
    assert {each.id for each in server.host.sandboxes(owner=server.owner)} == before


async def test_a_stranger_at_a_public_port_does_not_stay(serving: Serve) -> None:
    api = ApiSettings(stranger_timeout=3.0)
    async with asyncio.timeout(GRACE), serving(api=api) as server:
        sandbox = await made(server)
        async with saying(b"") as port:
            pass
        await sandbox.publish(port)
        where = URL(server.url)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        writer.write(f"GET {sandbox.path(port)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert await reader.readline() == b"HTTP/1.1 502 Bad Gateway\r\n"
        await reader.read()  # to the end, which comes
        writer.close()
        await writer.wait_closed()


async def test_a_credential_of_odd_bytes_is_the_guests_own(sandbox: Sandbox) -> None:
    async with application(mirror) as port:
        await sandbox.publish(port)
        where = URL(sandbox.server.url)
        reader, writer = await asyncio.open_connection(where.host, where.port)
        asked = f"GET {sandbox.path(port)} HTTP/1.1\r\nHost: x\r\nX-API-Key: ".encode()
        writer.write(asked + b"\xff\r\n\r\n")
        assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        writer.close()
        await writer.wait_closed()


async def test_all_ports_are_made_public_but_those_set_apart_later(sandbox: Sandbox) -> None:
    path = f"/v1/sandboxes/{sandbox.id}/ports"
    async with application(mirror) as port:
        status, listed = await sandbox.server.call("PUT", path, json={"access": "public"})
        assert (status, listed["access"], listed["ports"]) == (200, "public", [])
        assert (await told(sandbox, port, {}))[0] == 200
        await sandbox.publish(port, "private")
        assert (await told(sandbox, port, {}))[0] == 401
        status, listed = await sandbox.server.call("GET", path)
        assert listed["ports"] == [
            {
                "port": port,
                "access": "private",
                "path": sandbox.path(port),
                "host": f"{port}-{sandbox.id}.{DOMAIN}",
            }
        ]
        assert listed["domain"] == DOMAIN
        assert listed["tokens"] == []


async def test_what_opened_a_port_never_reaches_the_guest(sandbox: Sandbox) -> None:
    traffic = await token_of(sandbox, None)
    async with application(mirror) as port:
        for headers in (
            {"Authorization": f"Bearer {sandbox.server.token}"},
            {"Authorization": f"Bearer {sandbox.access_token}"},
            {"vmpool-traffic-token": traffic},
            {"e2b-traffic-access-token": traffic, "X-API-Key": sandbox.server.other_token},
            {"vmpool-traffic-token": traffic, "Authorization": f"Bearer {sandbox.server.token}"},
            {"vmpool-traffic-token": traffic, "X-Access-Token": sandbox.access_token},
        ):
            status, seen = await told(sandbox, port, headers)
            assert status == 200, seen
            assert not [value for value in headers.values() if value.split()[-1] in str(seen)]
        own = {"vmpool-traffic-token": traffic, "Authorization": "Bearer the-guests-own"}
        assert (await told(sandbox, port, own))[1]["headers"]["authorization"] == (
            "Bearer the-guests-own"
        )


async def token_of(sandbox: Sandbox, port: int | None) -> str:
    path = f"/v1/sandboxes/{sandbox.id}/ports/tokens"
    body = {} if port is None else {"port": port}
    status, answer = await sandbox.server.call("POST", path, json=body)
    assert status == 201, answer
    assert answer["port"] == port
    return str(answer["token"])


async def test_a_traffic_token_opens_its_port_and_nothing_else(sandbox: Sandbox) -> None:
    async with application(mirror) as port, application(mirror) as another:
        token = await token_of(sandbox, port)
        opens = {"vmpool-traffic-token": token}
        assert (await told(sandbox, port, opens))[0] == 200
        assert (await told(sandbox, another, opens))[0] == 401
        assert (await told(sandbox, port, {"Authorization": f"Bearer {token}"}))[0] == 401
        neighbour = await made(sandbox.server)
        assert (await told(neighbour, port, opens))[0] == 401
        bearer = {"Authorization": f"Bearer {token}"}
        for path in ("/v1/sandboxes", f"/v1/sandboxes/{sandbox.id}/ports"):
            assert (await sandbox.server.call("GET", path, headers=bearer))[0] == 401


async def test_a_revoked_traffic_token_opens_nothing(sandbox: Sandbox) -> None:
    path = f"/v1/sandboxes/{sandbox.id}/ports"
    async with application(mirror) as port:
        opens = {"vmpool-traffic-token": await token_of(sandbox, port)}
        _, listed = await sandbox.server.call("GET", path)
        (row,) = listed["tokens"]
        assert (row["port"], "token" in row) == (port, False)
        assert (await sandbox.server.call("DELETE", f"{path}/tokens/{row['id']}"))[0] == 204
        assert (await told(sandbox, port, opens))[0] == 401
        status, problem = await sandbox.server.call("DELETE", f"{path}/tokens/{row['id']}")
        assert (status, problem["code"]) == (404, "traffic_token_not_found")


async def test_somebody_else_finds_no_ports(sandbox: Sandbox) -> None:
    async with application(mirror) as port:
        for path in (
            sandbox.path(port),
            f"/v1/sandboxes/{sandbox.id}/ports",
            f"/v1/sandboxes/{sandbox.id}/ports/{port}",
        ):
            status, problem = await sandbox.server.call(
                "GET", path, headers=sandbox.server.as_other()
            )
            assert (status, problem["code"]) == (404, "sandbox_not_found")


async def test_what_everybody_may_reach_is_remembered_by_the_next_server(
    sandbox: Sandbox,
) -> None:
    async with application(mirror) as port:
        await sandbox.publish(port)
        token = await token_of(sandbox, None)
    held = await sandbox.server.host.sandbox(sandbox.id, owner=sandbox.server.owner)
    written = await sandbox.server.host.store.exposures.find(sandbox.id)
    assert written == await sandbox.server.host.ports.exposure(held)
    assert written.is_public(port)
    assert written.admits(token, 1)
    assert token not in written.text


# By host name.


def by_name(sandbox: Sandbox, port: int) -> dict[str, str]:
    return {"Host": f"{port}-{sandbox.id}.{DOMAIN}"}


async def test_a_port_has_a_host_name_of_its_own(sandbox: Sandbox) -> None:
    async with application(mirror) as port:
        for path in ("/a?b", "/v1/sandboxes", "/healthz"):
            url = sandbox.server.url + path
            async with sandbox.server.session.post(url, headers=by_name(sandbox, port)) as response:
                seen = await response.json()
            assert seen["target"] == path
            assert seen["headers"]["host"] == by_name(sandbox, port)["Host"]
            assert "x-forwarded-prefix" not in seen["headers"]
            assert "Content-Security-Policy" not in response.headers


async def test_a_host_name_opens_nothing_that_the_path_does_not(sandbox: Sandbox) -> None:
    async with application(mirror) as port, aiohttp.ClientSession() as stranger:
        for path in ("/", "/healthz", "/v1/sandboxes"):
            url = sandbox.server.url + path
            async with stranger.get(url, headers=by_name(sandbox, port)) as response:
                assert response.status == 401
        await sandbox.publish(port)
        async with stranger.get(sandbox.server.url, headers=by_name(sandbox, port)) as response:
            assert response.status == 200
            assert response.headers["Connection"] == "close"


async def test_a_websocket_opens_by_host_name(sandbox: Sandbox) -> None:
    async with application(websocket_echo) as port, asyncio.timeout(GRACE):
        connecting = sandbox.server.session.ws_connect(
            f"{sandbox.server.url}/x", headers=by_name(sandbox, port)
        )
        async with connecting as opened:
            await opened.send_str("there")
            assert await opened.receive_str() == "/x: there"


async def test_without_tokens_pages_of_others_reach_no_port(serving: Serve) -> None:
    api = ApiSettings(domain="localhost")
    async with serving(tokens=False, api=api) as server, application(mirror) as port:
        sandbox = await made(server)
        host = f"{port}-{sandbox.id}.localhost"
        for origin, status in (
            ({}, 200),
            ({"Origin": f"http://{host}"}, 200),
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "null"}, 403),
        ):
            assert (await server.call("GET", "/", headers={"Host": host, **origin}))[0] == status
        evil = {"Host": f"{port}-{sandbox.id}.evil.example"}
        _, problem = await server.call("GET", sandbox.path(port), headers=evil)
        assert problem["code"] == "foreign_host"


# Below the interface's own origin.


async def test_a_page_below_the_interface_is_sandboxed(sandbox: Sandbox) -> None:
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nSet-Cookie: a=b; Path=/\r\n"
        b"Service-Worker-Allowed: /\r\nContent-Length: 0\r\n\r\n"
    )
    async with saying(answer) as port:
        async with sandbox.ask("GET", port) as response:
            assert response.headers["Content-Security-Policy"] == "sandbox"
            assert not {"Set-Cookie", "Service-Worker-Allowed"} & set(response.headers)
        worker = {"Service-Worker": "script"}
        status, problem = await sandbox.call("GET", port, headers=worker)
        assert (status, problem["code"]) == (403, "service_worker_refused")


async def test_a_redirection_cannot_reach_the_interface(sandbox: Sandbox) -> None:
    async with (
        saying(b"HTTP/1.1 307 Go\r\nLocation: /v1/sandboxes\r\n\r\n") as port,
        sandbox.ask("DELETE", port, allow_redirects=False) as response,
    ):
        assert response.headers["Location"] == sandbox.path(port, "v1/sandboxes")
    there = f"Location: {sandbox.server.url}/v1/sandboxes/{sandbox.id}".encode()
    async with saying(b"HTTP/1.1 307 Go\r\n" + there + b"\r\n\r\n") as port:
        status, problem = await sandbox.call("DELETE", port)
    assert (status, problem["code"]) == (502, "port_redirect_refused")
    assert (await sandbox.server.call("GET", f"/v1/sandboxes/{sandbox.id}"))[0] == 200


async def test_what_is_no_port_is_not_there(sandbox: Sandbox) -> None:
    for port in ("0", "65536", "08", "x", "-1", "9" * 5000):
        for path in (f"ports/{port}", f"ports/{port}/", f"tcp/{port}"):
            status, _ = await sandbox.server.call("GET", f"/v1/sandboxes/{sandbox.id}/{path}")
            assert status == 404
