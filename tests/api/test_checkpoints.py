"""Pauses, checkpoints and rollbacks over HTTP: what is kept, shown, gone back to and removed."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.api.conftest import Server

ECHO = {"argv": ["echo", "here"]}


@pytest.fixture
async def sandbox(server: Server) -> str:
    """A sandbox's path."""
    return f"/v1/sandboxes/{(await server.make_sandbox())['id']}"


async def post(server: Server, path: str, body: dict[str, Any], status: int = 200) -> Any:
    found, answer = await server.call("POST", path, json=body)
    assert found == status, answer
    return answer


async def refusal(server: Server, method: str, path: str, **request: Any) -> tuple[int, str]:
    status, problem = await server.call(method, path, **request)
    return status, problem["code"]


def timeless(answer: dict[str, Any], moving: set[str]) -> dict[str, Any]:
    """Return an answer without what is another from one moment to the next."""
    return {name: value for name, value in answer.items() if name not in moving}


async def test_a_paused_sandbox_takes_no_work_until_it_is_resumed(
    server: Server, sandbox: str
) -> None:
    _, before = await server.call("GET", sandbox)
    paused = await post(server, f"{sandbox}/pause", {})
    moving = {"expires_at", "timings_ms"}
    assert timeless(paused, moving) == timeless(before, moving) | {"state": "paused"}
    again = await post(server, f"{sandbox}/pause", {})
    assert timeless(again, {"expires_at"}) == timeless(paused, {"expires_at"})
    _, seen = await server.call("GET", sandbox)
    assert timeless(seen, {"expires_at"}) == timeless(paused, {"expires_at"})
    _, listed = await server.call("GET", "/v1/sandboxes")
    assert [one["state"] for one in listed["sandboxes"]] == ["paused"]
    assert await refusal(server, "POST", f"{sandbox}/exec", json=ECHO) == (409, "sandbox_paused")
    assert await refusal(server, "GET", f"{sandbox}/files/stat?path=/") == (409, "sandbox_paused")
    resumed = await post(server, f"{sandbox}/resume", {"timeout": 1000})
    left = datetime.fromisoformat(resumed["expires_at"]) - datetime.now().astimezone()
    assert left.total_seconds() == pytest.approx(1000, abs=5)
    assert resumed["state"] == "running"
    for name in ("hostname", "machine_id"):
        assert resumed["identity"][name] == before["identity"][name]
    assert b"here" in await post(server, f"{sandbox}/exec", ECHO)


async def test_one_that_was_made_so_wakes_when_its_guest_is_needed(server: Server) -> None:
    made = await server.make_sandbox(auto_resume=True, on_expiry="pause", idle_timeout=600)
    assert (made["auto_resume"], made["on_expiry"], made["idle_timeout"]) == (True, "pause", 600)
    path = f"/v1/sandboxes/{made['id']}"
    await post(server, f"{path}/pause", {})
    assert (await server.call("GET", path))[1]["state"] == "paused"
    own = {"Authorization": f"Bearer {made['access_token']}"}
    status, lines = await server.call("POST", f"{path}/exec", json=ECHO, headers=own)
    assert (status, b"here" in lines) == (200, True)
    assert (await server.call("GET", path))[1]["state"] == "running"


async def test_a_checkpoint_is_found_by_id_and_by_name_until_it_is_removed(
    server: Server, sandbox: str
) -> None:
    kept = await post(server, f"{sandbox}/checkpoints", {"name": "Before.1"}, 201)
    assert set(kept) == {
        *("id", "name", "keep", "sandbox", "template", "base"),
        *("created_at", "dirty_bytes", "size_bytes"),
    }  # fmt: skip
    assert sandbox.endswith(kept["sandbox"])
    assert kept["size_bytes"] > 0
    for reference in (kept["id"], "Before.1"):
        assert await server.call("GET", f"/v1/checkpoints/{reference}") == (200, kept)
    assert await refusal(server, "POST", f"{sandbox}/checkpoints", json={"name": "Before.1"}) == (
        409,
        "checkpoint_exists",
    )
    assert await server.call("DELETE", "/v1/checkpoints/Before.1") == (204, b"")
    for method in ("GET", "DELETE"):
        found = await refusal(server, method, f"/v1/checkpoints/{kept['id']}")
        assert found == (404, "checkpoint_not_found")
    assert (await server.call("GET", sandbox))[1]["state"] == "running"


async def test_checkpoints_are_listed_newest_first_of_one_sandbox_and_in_pages(
    server: Server, sandbox: str
) -> None:
    other = f"/v1/sandboxes/{(await server.make_sandbox())['id']}"
    made = [
        (await post(server, f"{path}/checkpoints", {}, 201))["id"]
        for path in (sandbox, other, sandbox)
    ]
    _, whole = await server.call("GET", "/v1/checkpoints")
    assert [one["id"] for one in whole["checkpoints"]] == made[::-1]
    assert [one["name"] for one in whole["checkpoints"]] == [None] * 3
    _, some = await server.call("GET", f"/v1/checkpoints?sandbox={other.rsplit('/', 1)[1]}")
    assert [one["id"] for one in some["checkpoints"]] == [made[1]]
    paged, cursor = [], ""
    while cursor is not None:
        query = f"limit=1{cursor and '&cursor=' + cursor}"
        _, page = await server.call("GET", f"/v1/checkpoints?{query}")
        paged += [one["id"] for one in page["checkpoints"]]
        cursor = page["next_cursor"]
    assert paged == made[::-1]


async def test_a_sandbox_is_made_of_a_checkpoint_whose_own_is_gone(
    server: Server, sandbox: str
) -> None:
    kept = await post(server, f"{sandbox}/checkpoints", {"name": "base"}, 201)
    await server.call("DELETE", sandbox)
    made = await server.make_sandbox(checkpoint="base", rng={"seed": 7}, clock="frozen-at-snapshot")
    assert (made["checkpoint"], made["parent"], made["state"]) == (kept["id"], None, "running")
    for body, refused in (
        ({"checkpoint": "base", "template": "python"}, (400, "source_unclear")),
        ({"checkpoint": "none"}, (404, "checkpoint_not_found")),
        ({"checkpoint": "../none"}, (400, "invalid_request")),
        ({"rng": "fair"}, (400, "invalid_request")),
        ({"rng": {"seed": -1}}, (400, "invalid_request")),
        ({"clock": "yesterday"}, (400, "invalid_request")),
        ({"on_expiry": "forget"}, (400, "invalid_request")),
        ({"idle_timeout": 1e9}, (400, "invalid_timeout")),
    ):
        assert await refusal(server, "POST", "/v1/sandboxes", json=body) == refused


async def test_a_template_is_of_an_image_or_of_a_checkpoint(server: Server, sandbox: str) -> None:
    await post(server, f"{sandbox}/checkpoints", {"name": "base"}, 201)
    told = await post(server, "/v1/templates", {"name": "made:one", "checkpoint": "base"}, 201)
    assert (told["name"], told["state"]) == ("made:one", "ready")
    for body, refused in (
        ({}, (400, "source_unclear")),
        ({"image": "python", "checkpoint": "base"}, (400, "source_unclear")),
        ({"checkpoint": "base", "vcpus": 2}, (400, "invalid_machine")),
        ({"checkpoint": "none"}, (404, "checkpoint_not_found")),
    ):
        asked = {"name": "made", **body}
        assert await refusal(server, "POST", "/v1/templates", json=asked) == refused


async def test_a_rollback_breaks_off_what_runs_and_says_so(server: Server, sandbox: str) -> None:
    kept = await post(server, f"{sandbox}/checkpoints", {"name": "before"}, 201)
    _, before = await server.call("GET", sandbox)
    asked = {"argv": ["bash", "-c", "echo begun; exec sleep 1000"]}
    async with server.session.post(server.url + f"{sandbox}/exec", json=asked) as running:
        lines = [json.loads(await running.content.readline()) for _ in range(2)]
        assert [line["type"] for line in lines] == ["started", "stdout"]
        rolled = await post(server, f"{sandbox}/rollback", {"checkpoint": kept["name"]})
        (last,) = [json.loads(line) async for line in running.content]
    assert (last["type"], last["problem"]["code"]) == ("problem", "sandbox_rolled_back")
    assert (rolled["id"], rolled["state"]) == (before["id"], "running")
    assert rolled["identity"]["machine_id"] == before["identity"]["machine_id"]
    found = await refusal(server, "POST", f"{sandbox}/rollback", json={"checkpoint": "none"})
    assert found == (404, "checkpoint_not_found")
    assert b"here" in await post(server, f"{sandbox}/exec", ECHO)


async def test_what_is_asked_for_twice_is_kept_once(server: Server, sandbox: str) -> None:
    answers = await asyncio.gather(
        *(
            server.call(
                "POST", f"{sandbox}/checkpoints", json={}, headers={"Idempotency-Key": "once"}
            )
            for _ in range(3)
        )
    )
    assert {status for status, _ in answers} == {201}
    assert len({answer["id"] for _, answer in answers}) == 1


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [("GET", "", None), ("DELETE", "", None), ("POST", None, {})],
)
async def test_a_foreign_checkpoint_is_not_there(
    server: Server, sandbox: str, method: str, path: str | None, body: dict[str, str] | None
) -> None:
    kept = await post(server, f"{sandbox}/checkpoints", {"name": "mine"}, 201)
    for reference in (kept["id"], "mine"):
        found = await refusal(
            server,
            method,
            "/v1/sandboxes" if path is None else f"/v1/checkpoints/{reference}",
            json=None if body is None else {"checkpoint": reference},
            headers=server.as_other(),
        )
        assert found == (404, "checkpoint_not_found")
    assert (await server.call("GET", "/v1/checkpoints", headers=server.as_other()))[1] == {
        "checkpoints": [],
        "next_cursor": None,
    }
    assert (await server.call("GET", f"/v1/checkpoints/{kept['id']}"))[0] == 200


@pytest.mark.parametrize("verb", ["pause", "resume", "checkpoints", "rollback", "fork"])
async def test_a_sandboxs_own_token_changes_nothing_but_what_is_in_it(
    server: Server, verb: str
) -> None:
    made = await server.make_sandbox()
    own = {"Authorization": f"Bearer {made['access_token']}"}
    path = f"/v1/sandboxes/{made['id']}/{verb}"
    assert await refusal(server, "POST", path, json={}, headers=own) == (401, "token_invalid")
