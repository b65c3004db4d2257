"""Auth: who gets in, with what, to what; and that tokens stay out of the log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from typing import TYPE_CHECKING

import aiohttp
import pytest
from click.testing import CliRunner

from vmpool.api import make_app, serve
from vmpool.api.auth import Access
from vmpool.api.routes import ROUTES
from vmpool.cli import tokens
from vmpool.errors import HostError
from vmpool.scope import Scope

if TYPE_CHECKING:
    from tests.api.conftest import Serve, Server

BEYOND_USE = {each for each in Access if each.scope not in {None, Scope.SANDBOXES}}


def paths(*kinds: Access) -> list[tuple[str, str]]:
    return [
        (route.method, re.sub(r"\{\w+\}", "1", route.path))
        for route in ROUTES
        if route.access in kinds
    ]


@pytest.mark.parametrize(
    ("method", "path"), paths(*(each for each in Access if each is not Access.OPEN))
)
async def test_nothing_is_done_without_a_token(server: Server, method: str, path: str) -> None:
    for header, code in (
        ("", "token_missing"),
        ("Basic YTpi", "token_missing"),
        ("Bearer ", "token_missing"),
        ("Bearer wrong", "token_invalid"),
        ("Bearer " + "x" * 2000, "token_invalid"),
    ):
        async with server.session.request(
            method, server.url + path, headers={"Authorization": header}
        ) as response:
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == 'Bearer realm="vmpool"'
            assert (await response.json(content_type=None))["code"] == code


@pytest.mark.parametrize(("method", "path"), paths(Access.OPEN))
async def test_what_is_open_needs_no_token(server: Server, method: str, path: str) -> None:
    assert (await server.call(method, path, headers={"Authorization": ""}))[0] == 200


async def test_a_sandboxs_own_token_opens_that_sandbox_alone(server: Server) -> None:
    mine, other = await server.make_sandbox(), await server.make_sandbox()
    own = {"Authorization": f"Bearer {mine['access_token']}"}
    inside, outside = f"/v1/sandboxes/{mine['id']}", f"/v1/sandboxes/{other['id']}"
    body = {"argv": ["true"]}
    assert (await server.call("POST", f"{inside}/exec", json=body, headers=own))[0] == 200
    assert (await server.call("GET", f"{inside}/files?path=/etc/passwd", headers=own))[0] == 200
    for method, path in (
        ("POST", f"{outside}/exec"),
        ("GET", f"{outside}/files?path=/etc/passwd"),
        ("GET", inside),
        ("DELETE", inside),
        ("POST", f"{inside}/timeout"),
        ("GET", "/v1/sandboxes"),
        ("POST", "/v1/sandboxes"),
        ("POST", "/v1/run"),
        ("GET", "/metrics"),
    ):
        status, problem = await server.call(method, path, json=body, headers=own)
        assert (status, problem["code"]) == (401, "token_invalid"), path
    await server.call("DELETE", inside)
    status, _ = await server.call("POST", f"{inside}/exec", json=body, headers=own)
    assert status == 401


async def test_without_tokens_everything_is_the_local_owners(serving: Serve) -> None:
    async with serving(tokens=False) as server:
        await server.make_sandbox()
        assert len(server.host.sandboxes(owner="local")) == 1


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Host": "attacker.example"}, "foreign_host"),
        ({"Host": "127.0.0.1.attacker.example"}, "foreign_host"),
        ({"Host": "[::1"}, "foreign_host"),
        ({"Host": ""}, "foreign_host"),
        ({"Origin": "http://attacker.example"}, "cross_origin"),
        ({"Origin": "http://127.0.0.1:1"}, "cross_origin"),
        ({"Origin": "null"}, "cross_origin"),
    ],
)
async def test_without_tokens_web_pages_are_kept_out(
    serving: Serve, headers: dict[str, str], code: str
) -> None:
    async with serving(tokens=False) as server:
        body = {"argv": ["true"]}
        status, problem = await server.call("POST", "/v1/run", json=body, headers=headers)
        assert (status, problem["code"]) == (403, code)
        assert await server.host.store.audit.entries(10) == []


async def test_without_tokens_the_servers_own_pages_are_let_in(serving: Serve) -> None:
    async with serving(tokens=False) as server:
        for origin in (server.url, server.url.upper()):
            assert (await server.call("GET", "/v1/sandboxes", headers={"Origin": origin}))[0] == 200


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0"])
async def test_without_tokens_no_one_else_can_be_served(serving: Serve, listen: str) -> None:
    async with serving(tokens=False) as server:
        app = make_app(server.host)
        with pytest.raises(HostError) as caught:
            await serve(app, listen).__aenter__()
    assert caught.value.error_code == "tokens_required"


async def test_serving_without_tokens_is_warned_of(
    serving: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tokens=False):
        pass
    assert any("without tokens" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("listen", "code"),
    [("nowhere", "invalid_settings"), ("127.0.0.1:99999", "invalid_settings"),
     ("256.0.0.1:80", "address_unusable"), ("192.0.2.1:80", "address_unusable")],
)  # fmt: skip
async def test_an_address_that_is_none_is_said(server: Server, listen: str, code: str) -> None:
    with pytest.raises(HostError) as caught:
        await serve(make_app(server.host), listen).__aenter__()
    assert caught.value.error_code == code


async def test_a_taken_address_is_said_and_a_socket_may_be_passed(server: Server) -> None:
    with pytest.raises(HostError) as caught:
        await serve(make_app(server.host), server.url.removeprefix("http://")).__aenter__()
    assert caught.value.error_code == "address_unusable"
    given = socket.create_server(("127.0.0.1", 0))
    port = given.getsockname()[1]
    async with serve(make_app(server.host), given) as address:
        assert address.port == port
        async with server.session.get(f"{address.url}/healthz") as response:
            assert response.status == 200


async def test_tokens_and_output_stay_out_of_the_log(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    sandbox = await server.make_sandbox()
    path = f"/v1/sandboxes/{sandbox['id']}"
    await server.call("POST", f"{path}/exec", json={"argv": ["echo", "spoken-by-the-guest"]})
    await server.call("GET", f"{path}/files?path=/named/by/the/caller")
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(f"GET / HTTP/1.1\r\nAuthorization : Bearer {server.token}\r\n\r\n".encode())
        await server.call("GET", "/healthz")
    wire_loggers = {"aiohttp.client", "asyncio"}
    logged = "\n".join(
        record.getMessage() for record in caplog.records if record.name not in wire_loggers
    )
    assert "/v1/sandboxes/{id}/exec 200" in logged
    for secret in (server.token, sandbox["access_token"], "spoken-by-the-guest", "named/by"):
        assert secret not in logged
    assert all(record.exc_info is None for record in caplog.records)


def test_every_route_says_who_may_use_it() -> None:
    open_paths = {route.path for route in ROUTES if route.access is Access.OPEN}
    assert open_paths == {"/healthz", "/openapi.json"}


async def test_without_a_token_nothing_is_told_of_what_anybody_made(server: Server) -> None:
    async with (
        aiohttp.ClientSession() as stranger,
        stranger.get(f"{server.url}/healthz") as response,
    ):
        assert (await response.json()).keys() == {"ok", "version"}


@pytest.mark.parametrize(("method", "path"), paths(*BEYOND_USE))
async def test_a_token_that_may_only_use_administers_nothing(
    server: Server, method: str, path: str
) -> None:
    status, problem = await server.call(method, path, headers=server.as_other())
    assert (status, problem["code"]) == (403, "scope_missing")
    assert "--scope" in problem["remedy"]
    async with server.session.request(method, server.url + path) as response:
        assert response.status != 403


async def test_a_token_that_may_only_use_runs_and_holds_sandboxes(server: Server) -> None:
    own = server.as_other()
    body = {"argv": ["true"]}
    assert (await server.call("POST", "/v1/run", json=body, headers=own))[0] == 200
    assert (await server.call("POST", "/v1/sandboxes", json={}, headers=own))[0] == 201
    assert (await server.call("GET", "/v1/templates", headers=own))[0] == 200


def test_what_a_user_does_not_need_takes_more() -> None:
    assert {route.name: route.access for route in ROUTES if route.access in BEYOND_USE} == {
        "create_template": Access.TEMPLATES,
        "remove_template": Access.TEMPLATES,
        "read_audit": Access.AUDIT,
        "metrics": Access.METRICS,
        "import_checkpoint": Access.OPERATOR,
    }


async def test_a_token_may_do_what_the_role_allows_that_it_was_made_with(server: Server) -> None:
    where = ["--state", str(server.host.settings.state)]

    def vmpool(*words: str) -> str:
        ended = CliRunner().invoke(tokens.command, [*words, *where], catch_exceptions=False)
        return ended.output.strip() if ended.exit_code == 0 else f"exit {ended.exit_code}"

    reached = []
    for role in ([], ["--role", "use"], ["--role", "admin"], ["--scope", "audit"]):
        token = await asyncio.to_thread(vmpool, "create", "made", *role)
        headers = {"Authorization": f"Bearer {token}"}
        reached.append(
            [
                (await server.call("GET", path, headers=headers))[0]
                for path in ("/v1/sandboxes", "/v1/audit")
            ]
        )
    assert reached == [[200, 403], [200, 403], [200, 200], [403, 200]]
    listed = json.loads(await asyncio.to_thread(vmpool, "list", "--json"))
    assert [one["scopes"] for one in listed if one["name"] == "made"] == [
        ["sandboxes"],
        ["sandboxes"],
        ["audit", "metrics", "operator", "sandboxes", "templates"],
        ["audit"],
    ]
    assert await asyncio.to_thread(vmpool, "create", "made", "--role", "root") == "exit 2"
