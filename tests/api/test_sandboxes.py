"""Sandboxes: made, listed, extended, killed, and nobody else's."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.api.conftest import Server


async def test_a_sandbox_lives_until_it_is_killed(server: Server) -> None:
    made = await server.make_sandbox(timeout=100, metadata={"for": "me"})
    life = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"])
    assert life.total_seconds() == pytest.approx(100, abs=0.01)
    assert made["state"] == "running"
    assert made["metadata"] == {"for": "me"}
    assert set(made["timings_ms"]) > {"acquire", "load", "identify"}
    path = f"/v1/sandboxes/{made['id']}"
    token = made.pop("access_token")
    assert len(token) == 43
    assert await server.call("GET", path) == (200, made)
    assert await server.call("DELETE", path) == (204, b"")
    status, problem = await server.call("GET", path)
    assert (status, problem["code"]) == (410, "sandbox_ended")


async def test_env_of_a_sandbox_is_seen_by_all_that_runs_in_it(server: Server) -> None:
    made = await server.make_sandbox(env={"A": "1", "B": "2"})
    body = {"argv": ["bash", "-c", "echo $A$B"], "env": {"B": "3"}}
    _, lines = await server.call("POST", f"/v1/sandboxes/{made['id']}/exec", json=body)
    assert b'"data":"13\\n"' in lines


async def test_a_list_is_newest_first_filtered_and_in_pages(server: Server) -> None:
    made = [await server.make_sandbox(metadata={"n": str(n), "x": "a=b"}) for n in range(3)]
    ids = [sandbox["id"] for sandbox in reversed(made)]
    _, whole = await server.call("GET", "/v1/sandboxes")
    assert [sandbox["id"] for sandbox in whole["sandboxes"]] == ids
    assert whole["next_cursor"] is None
    assert "access_token" not in whole["sandboxes"][0]
    _, found = await server.call("GET", "/v1/sandboxes?metadata=n=1&metadata=x=a%3Db")
    assert [sandbox["id"] for sandbox in found["sandboxes"]] == [ids[1]]
    _, none = await server.call("GET", "/v1/sandboxes?metadata=n=1&metadata=x=c")
    assert none["sandboxes"] == []
    paged: list[str] = []
    cursor = ""
    while cursor is not None:
        _, page = await server.call("GET", f"/v1/sandboxes?limit=1{cursor and '&cursor=' + cursor}")
        paged += [sandbox["id"] for sandbox in page["sandboxes"]]
        cursor = page["next_cursor"]
    assert paged == ids


async def test_a_deadline_moves_both_ways(server: Server) -> None:
    made = await server.make_sandbox(timeout=100)
    for timeout in (50, 1000):
        status, moved = await server.call(
            "POST", f"/v1/sandboxes/{made['id']}/timeout", json={"timeout": timeout}
        )
        left = datetime.fromisoformat(moved["expires_at"]) - datetime.now().astimezone()
        assert status == 200
        assert left.total_seconds() == pytest.approx(timeout, abs=5)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("DELETE", "", None),
        ("POST", "/timeout", {"timeout": 5}),
        ("POST", "/pause", {}),
        ("POST", "/resume", {}),
        ("POST", "/checkpoints", {}),
        ("POST", "/rollback", {"checkpoint": "any"}),
        ("POST", "/fork", {}),
        ("POST", "/exec", {"argv": ["true"]}),
        ("GET", "/files?path=/etc/passwd", None),
        ("PUT", "/files?path=/tmp/never", None),
        ("DELETE", "/files?path=/tmp/never", None),
        ("GET", "/files/stat?path=/etc/passwd", None),
        ("GET", "/files/list?path=/etc", None),
        ("POST", "/files/directory", {"path": "/tmp/never"}),
        ("POST", "/files/move", {"source": "/tmp/never", "destination": "/tmp/ever"}),
    ],
)
async def test_a_foreign_sandbox_is_not_there(
    server: Server, method: str, path: str, body: dict[str, object] | None
) -> None:
    made = await server.make_sandbox()
    status, problem = await server.call(
        method, f"/v1/sandboxes/{made['id']}{path}", json=body, headers=server.as_other()
    )
    assert (status, problem["code"]) == (404, "sandbox_not_found")
    assert (await server.call("GET", f"/v1/sandboxes/{made['id']}"))[0] == 200


@pytest.mark.parametrize(
    ("query", "status"),
    [("limit=0", 400), ("limit=x", 400), ("cursor=%00", 400), ("cursor=abcd", 400),
     ("metadata=novalue", 400), ("colour=red", 400), ("limit=1&limit=2", 400)],
)  # fmt: skip
async def test_a_bad_query_is_refused(server: Server, query: str, status: int) -> None:
    found, problem = await server.call("GET", f"/v1/sandboxes?{query}")
    assert (found, problem["code"]) == (status, "invalid_request")


async def test_a_timeout_over_the_limit_is_refused_with_the_limit(server: Server) -> None:
    status, problem = await server.call("POST", "/v1/sandboxes", json={"timeout": 1e8})
    assert (status, problem["code"]) == (400, "invalid_timeout")
    assert problem["limits"]["sandbox_seconds"] == 86400
