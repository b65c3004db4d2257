"""Forks over HTTP: every child told of by itself, and places for all of them or none."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from vmpool.errors import GuestError, PoolBusyError

if TYPE_CHECKING:
    from tests.api.conftest import Server
    from vmpool.forking import ForkRequest
    from vmpool.sandbox import Sandbox


async def fork(server: Server, parent: str, **body: Any) -> tuple[int, Any]:
    return await server.call("POST", f"/v1/sandboxes/{parent}/fork", json=body)


async def test_children_are_sandboxes_of_their_own(server: Server) -> None:
    parent = await server.make_sandbox(env={"A": "parent", "B": "parent"})
    status, forked = await fork(
        server, parent["id"], count=3, env={"B": "child"}, metadata={"n": "1"}, timeout=50
    )
    assert (status, len(forked["children"])) == (201, 3)
    assert forked["timings_ms"]["total"] > 0
    children = [child["sandbox"] for child in forked["children"]]
    family = [parent, *children]
    for name in ("id", "access_token"):
        assert len({one[name] for one in family}) == 4
    for name in ("hostname", "machine_id"):
        assert len({one["identity"][name] for one in family}) == 4
    for child in children:
        assert (child["parent"], child["metadata"]) == (parent["id"], {"n": "1"})
        own = {"Authorization": f"Bearer {child['access_token']}"}
        asked = {"argv": ["bash", "-c", "echo $A $B"]}
        path = f"/v1/sandboxes/{child['id']}/exec"
        _, lines = await server.call("POST", path, json=asked, headers=own)
        assert b'"data":"parent child\\n"' in lines
    _, listed = await server.call("GET", "/v1/sandboxes?metadata=n=1")
    assert {one["id"] for one in listed["sandboxes"]} == {child["id"] for child in children}


async def test_files_are_in_a_child_before_it_is_told_of(server: Server, tmp_path: Any) -> None:
    parent, target = await server.make_sandbox(), tmp_path / "sent"
    status, _ = await fork(server, parent["id"], files={str(target): {"content": "é"}})
    assert status == 201
    assert target.read_text() == "é"


async def test_a_child_that_could_not_be_made_is_a_problem_among_the_others(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = server.host.fork

    async def partly(id: str, request: ForkRequest, *, owner: str) -> list[Any]:
        made: list[Sandbox] = await whole(id, request, owner=owner)
        await server.host.kill(made[1].id, owner=owner)
        return [made[0], GuestError("it never woke", code="guest_lost")]

    monkeypatch.setattr(server.host, "fork", partly)
    parent = await server.make_sandbox()
    status, forked = await fork(server, parent["id"], count=2)
    assert status == 201
    first, second = forked["children"]
    assert set(first) == {"sandbox"}
    assert set(second) == {"problem"}
    assert (second["problem"]["code"], second["problem"]["status"]) == ("guest_lost", 502)


async def test_a_fork_without_a_child_is_the_first_ones_problem(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def barren(*_: Any, **__: Any) -> list[Any]:
        return [PoolBusyError("none left", code="pool_full"), GuestError("lost")]

    monkeypatch.setattr(server.host, "fork", barren)
    status, problem = await fork(server, (await server.make_sandbox())["id"], count=2)
    assert (status, problem["code"]) == (429, "pool_full")


async def test_the_same_fork_twice_has_the_same_children(server: Server) -> None:
    parent = (await server.make_sandbox())["id"]
    path, key = f"/v1/sandboxes/{parent}/fork", {"Idempotency-Key": "k"}
    first, second = await asyncio.gather(
        *(server.call("POST", path, json={"count": 2}, headers=key) for _ in range(2))
    )
    assert first == second
    assert len(server.host.sandboxes(owner=server.owner)) == 3


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ({"count": 0}, (400, "invalid_request")),
        ({"count": 65}, (400, "fork_too_wide")),
        ({"timeout": 1e9}, (400, "invalid_timeout")),
        ({"files": {"relative": {"content": ""}}}, (400, "invalid_path")),
        ({"files": {"/a": {}}}, (400, "invalid_request")),
        ({"env": {"A": "x" * 200_000}}, (413, "arguments_too_large")),
        ({"rng": {"seed": 1, "more": 2}}, (400, "invalid_request")),
    ],
)
async def test_a_fork_that_makes_no_sense_is_refused(
    server: Server, body: dict[str, Any], refused: tuple[int, str]
) -> None:
    parent = (await server.make_sandbox())["id"]
    status, problem = await fork(server, parent, **body)
    assert (status, problem["code"]) == refused


async def test_a_paused_sandbox_has_no_children(server: Server) -> None:
    parent = (await server.make_sandbox())["id"]
    await server.call("POST", f"/v1/sandboxes/{parent}/pause", json={})
    status, problem = await fork(server, parent)
    assert (status, problem["code"]) == (409, "sandbox_paused")
