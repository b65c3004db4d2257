"""Two tenants of one server: neither learns that the other is there, at any route."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import pytest
from click.testing import CliRunner
from msgspec import structs

from vmpool import AsyncClient
from vmpool.api.route import Source
from vmpool.api.routes import ROUTES
from vmpool.cli import tenants, usage
from vmpool.cli.tenants import _RESOURCES
from vmpool.errors import ForbiddenError, QuotaError
from vmpool.scope import Scope

if TYPE_CHECKING:
    from tests.api.conftest import Server
    from vmpool.api.route import Route

MEMBERS: dict[str, Any] = {
    "access": "public",
    "argv": ["true"],
    "checkpoint": "theirs",
    "code": "1",
    "destination": "/tmp/y",
    "mode": "none",
    "path": "/tmp/x",
    "signal": 15,
    "source": "/tmp/x",
    "target": "/tmp/x",
    "timeout": 5,
}
"""What members must hold for a request to be asked seriously, in whichever route."""

ONE_OF = {"execute": ["argv"], "write_process_input": ["eof"]}
"""Members that a request must have one of, though none is required by itself."""

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}


def input_of(route: Route) -> dict[str, Any]:
    """Return as much of a route's input as it must have."""
    required = [each.name for each in structs.fields(route.takes) if each.required]
    return {name: MEMBERS.get(name, True) for name in [*required, *ONE_OF.get(route.name, ())]}


def named(*parameters: str) -> list[Route]:
    """Return the routes that name a thing of somebody's."""
    return [
        route
        for route in ROUTES
        if any(f"{{{parameter}}}" in route.path for parameter in parameters)
    ]


def path_at(route: Route, **names: str) -> str:
    """Return a route's path with its names filled in, and what its query must have."""
    path = re.sub(r"\{(\w+)[^}]*\}", lambda name: names.get(name[1], "1"), route.path)
    given = input_of(route) if route.source is Source.QUERY else {}
    return f"{path}?{urlencode(given)}" if given else path


async def asked(server: Server, route: Route, path: str, **headers: str) -> tuple[int, str]:
    """Return the status and the code that somebody's request gets."""
    sent: dict[str, Any] = {"headers": headers}
    if 101 in {each.status for each in route.answers}:
        sent["headers"] = headers | UPGRADE
    if route.source is Source.BODY:
        sent["json"] = input_of(route)
    elif route.uploads:
        sent["data"] = b""
        sent["headers"] = headers | {"Content-Type": f"{route.uploads}; boundary=x"}
    async with server.session.request(route.method, server.url + path, **sent) as response:
        answer = await response.json(content_type=None) if response.status >= 400 else {}
        return response.status, answer.get("code", "")


@pytest.mark.parametrize("route", named("id"), ids=lambda route: route.name)
async def test_somebody_elses_sandbox_is_not_there(server: Server, route: Route) -> None:
    theirs = await server.make_sandbox()
    token, _ = await server.host.store.tokens.add("third", frozenset(Scope))
    mine = {"Authorization": f"Bearer {token}"}
    found = await asked(server, route, path_at(route, id=theirs["id"]), **mine)
    none = await asked(server, route, path_at(route, id="x" * 20), **mine)
    assert found == none == (404, "sandbox_not_found")
    assert len(server.host.sandboxes(owner=server.owner)) == 1


@pytest.mark.parametrize("route", named("checkpoint"), ids=lambda route: route.name)
async def test_somebody_elses_checkpoint_is_not_there(server: Server, route: Route) -> None:
    made = await server.make_sandbox()
    kept = await server.host.checkpoint(made["id"], owner=server.owner, name="theirs")
    for name in (kept.id, "theirs"):
        path = path_at(route, checkpoint=name)
        assert await asked(server, route, path, **server.as_other()) == (
            404,
            "checkpoint_not_found",
        )
    body = {"checkpoint": kept.id}
    status, problem = await server.call(
        "POST", "/v1/sandboxes", json=body, headers=server.as_other()
    )
    assert (status, problem["code"]) == (404, "checkpoint_not_found")


async def test_lists_hold_ones_own_alone(server: Server) -> None:
    made = await server.make_sandbox()
    await server.host.checkpoint(made["id"], owner=server.owner, name="theirs")
    token, _ = await server.host.store.tokens.add("third", frozenset(Scope) - {Scope.OPERATOR})
    mine = {"Authorization": f"Bearer {token}"}
    for path, member in (
        ("sandboxes", "sandboxes"),
        ("checkpoints", "checkpoints"),
        ("audit", "entries"),
    ):
        _, ours = await server.call("GET", f"/v1/{path}")
        _, found = await server.call("GET", f"/v1/{path}", headers=mine)
        assert (bool(ours[member]), found[member]) == (True, []), path
    _, found = await server.call("GET", f"/v1/audit?owner={server.owner}", headers=mine)
    assert found["entries"] == []


async def test_tokens_of_one_tenant_share_all_but_the_log_tells_them_apart(server: Server) -> None:
    token, row = await server.host.store.tokens.add("more", frozenset(Scope), tenant=server.owner)
    more = {"Authorization": f"Bearer {token}"}
    made = await server.make_sandbox()
    assert (await server.call("DELETE", f"/v1/sandboxes/{made['id']}", headers=more))[0] == 204
    _, log = await server.call("GET", f"/v1/audit?sandbox={made['id']}", headers=more)
    assert {each["owner"] for each in log["entries"]} == {server.owner}
    assert [each["token"] for each in log["entries"]] == [row.id, server.owner]
    _, log = await server.call("GET", f"/v1/audit?token={row.id}")
    assert [each["action"] for each in log["entries"]] == ["sandbox.kill"]


async def test_a_key_that_two_tenants_use_is_two_keys(server: Server) -> None:
    key = {"Idempotency-Key": "same"}
    _, mine = await server.call("POST", "/v1/sandboxes", json={}, headers=key)
    _, theirs = await server.call("POST", "/v1/sandboxes", json={}, headers=key | server.as_other())
    assert mine["id"] != theirs["id"]


async def test_what_time_does_is_on_nobodys_token(server: Server) -> None:
    body = {"timeout": 0.2, "on_expiry": "pause"}
    made = await server.make_sandbox(**body)
    async with asyncio.timeout(30):
        while not (log := await _entries(server, made["id"], "sandbox.pause")):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert [(each["owner"], each["token"]) for each in log] == [(server.owner, None)]


async def _entries(server: Server, sandbox: str, action: str) -> list[dict[str, Any]]:
    _, log = await server.call("GET", f"/v1/audit?sandbox={sandbox}&action={action}")
    return list(log["entries"])


async def allow(server: Server, tenant: str, **quota: int) -> None:
    """Set a tenant's limits, as if two seconds ago."""
    await server.host.store.tenants.change(tenant, name=None, quota=dict(quota))
    server.host.quotas._asked_at = float("-inf")


async def test_what_is_too_much_is_refused_with_what_is_used_and_when_to_come_back(
    server: Server,
) -> None:
    quota = {"sandboxes": 1, "creates_per_minute": 3}
    await allow(server, server.owner, **quota)
    await server.make_sandbox()
    async with server.session.post(f"{server.url}/v1/sandboxes", json={}) as response:
        problem = await response.json(content_type=None)
        assert (response.status, problem["code"]) == (429, "quota_exceeded")
        assert problem["limits"] == problem["used"] == {"sandboxes": 1}
        assert response.headers["Retry-After"] == "1"
    async with AsyncClient(server.url, token=server.token) as client:
        with pytest.raises(QuotaError) as refused:
            await client.create()
        assert (refused.value.resource, refused.value.used, refused.value.limit) == (
            "sandboxes",
            1,
            1,
        )
        found = await client.usage()
        assert (found.used["sandboxes"], found.limits["sandboxes"]) == (1, 1)
        assert (found.used["creates_per_minute"], found.limits["creates_per_minute"]) == (1, 3)
        assert found.limits["paused"] == server.host.settings.tenants.paused


async def test_usage_is_ones_own_unless_one_operates(server: Server) -> None:
    await server.make_sandbox()
    async with AsyncClient(server.url, token=server.other_token) as client:
        assert (await client.usage()).used["sandboxes"] == 0
        with pytest.raises(ForbiddenError):
            await client.usage(server.owner)
    async with AsyncClient(server.url, token=server.token) as client:
        assert (await client.usage(server.owner)).used["sandboxes"] == 1


async def test_a_command_line_makes_changes_and_removes_tenants(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmpool.quotas.RECENT_SECONDS", 0.0)
    where = ["--state", str(server.host.settings.state)]

    async def vmpool(*words: str) -> str:
        ended = await asyncio.to_thread(
            CliRunner().invoke, tenants.command, [*words, *where], catch_exceptions=False
        )
        return ended.output.strip() if ended.exit_code == 0 else f"exit {ended.exit_code}"

    id = await vmpool("create", "acme", "--sandboxes", "2", "--memory-bytes", "unlimited")
    token, _ = await server.host.store.tokens.add("ci", frozenset(Scope), tenant="acme")
    await vmpool("set", "acme", "--name", "acme-2", "--memory-bytes", "default", "--vcpus", "3")
    found = await server.host.store.tenants.find(id)
    assert (found.name, found.quota) == ("acme-2", {"sandboxes": 2, "vcpus": 3})
    assert "sandboxes=2 vcpus=3" in await vmpool("list")
    assert await vmpool("set", "acme-2", "--vcpus", "-1") == "exit 2"
    shown = ["--server", server.url, "--token", token, "--state", str(server.host.settings.state)]
    table = await asyncio.to_thread(
        CliRunner().invoke, usage.command, shown, catch_exceptions=False
    )
    assert [line.split() for line in table.output.splitlines()][1] == ["sandboxes", "0", "2"]
    await vmpool("remove", id)
    assert await server.host.store.tokens.find(token) is None


def test_the_command_line_and_the_interface_know_the_same_resources(server: Server) -> None:
    assert list(_RESOURCES) == [*server.host.quotas.of("any").__dataclass_fields__]


async def test_a_tenants_own_template_is_its_own_and_goes_before_everybodys(server: Server) -> None:
    scopes = frozenset({Scope.SANDBOXES, Scope.TEMPLATES})
    maker, row = await server.host.store.tokens.add("maker", scopes)
    other, _ = await server.host.store.tokens.add("other", scopes)

    async def ask(token: str, method: str, path: str, **body: Any) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"}
        sent = body if method == "POST" else None
        return await server.call(method, f"/v1/{path}", headers=headers, json=sent)

    limits = {"ready": 0}
    own = {"image": "python", "limits": limits, "memory_bytes": 128 << 20}
    assert (await ask(maker, "POST", "templates", name="python", **own))[0] == 201
    assert (await ask(maker, "POST", "templates", name="secret-plan", **own))[0] == 201

    _, mine = await ask(maker, "GET", "templates/python")
    _, theirs = await ask(other, "GET", "templates/python")
    assert (mine["name"], mine["tenant"], mine["memory_bytes"]) == ("python", row.id, 128 << 20)
    assert (theirs["name"], theirs["tenant"], theirs["memory_bytes"]) == ("python", None, 256 << 20)

    status, problem = await ask(other, "POST", "sandboxes", template="secret-plan")
    assert (status, problem["code"]) == (404, "template_not_found")
    assert "secret-plan" not in problem["remedy"]
    for method, path in (("GET", "templates/secret-plan"), ("DELETE", "templates/secret-plan")):
        assert (await ask(other, method, path))[0] == 404
        assert (await ask(other, method, f"{path}?tenant={row.id}"))[0] == 403
        whole = path.replace("/", f"/{row.id}%2F")  # what the host itself knows it by
        assert (await ask(other, method, whole))[0] == 404
    _, listed = await ask(other, "GET", "templates")
    assert ([each["name"] for each in listed["templates"]], listed["bases"]) == (["python"], [])
    _, listed = await ask(server.token, "GET", "templates")
    assert {each["tenant"] for each in listed["templates"]} == {None, row.id}

    status, made = await ask(maker, "POST", "sandboxes")
    assert (status, made["template"]) == (201, "python")
    assert server.host.quotas.used(row.id).memory_bytes == 128 << 20
    assert (await ask(maker, "POST", f"sandboxes/{made['id']}/pause"))[0] == 200
    assert (await ask(maker, "POST", f"sandboxes/{made['id']}/resume"))[0] == 200
    key = f"{row.id}/python"
    assert server.host.catalogue.status(key).census.held == 1
    assert server.host.catalogue.status("python").census.held == 0

    assert (await ask(maker, "DELETE", "templates/python"))[0] == 204
    status, problem = await ask(maker, "DELETE", "templates/python")
    assert (status, problem["code"]) == (403, "scope_missing")
    path = f"templates/secret-plan?tenant={row.id}"
    assert (await ask(server.token, "DELETE", path))[0] == 204
    _, log = await ask(server.token, "GET", f"audit?action=template.remove&owner={row.id}")
    assert [each["subject"] for each in log["entries"]] == [key]


async def test_spares_of_a_tenants_own_template_are_within_its_quota(server: Server) -> None:
    token, row = await server.host.store.tokens.add("maker", frozenset({Scope.TEMPLATES}))
    await allow(server, row.id, vcpus=3)
    body = {"name": "mine", "image": "python", "limits": {"ready": 4, "total": 4}}
    headers = {"Authorization": f"Bearer {token}"}
    status, problem = await server.call("POST", "/v1/templates", json=body, headers=headers)
    assert (status, problem["limits"]) == (429, {"vcpus": 3})
    assert [each.name for each in server.host.catalogue.statuses] == ["python"]
