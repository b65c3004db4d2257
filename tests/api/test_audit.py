"""The audit log over HTTP: found by who, what and on which, a page at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.api.conftest import Server


async def read(server: Server, query: str = "") -> dict[str, Any]:
    status, found = await server.call("GET", f"/v1/audit?{query}")
    assert status == 200, found
    return dict(found)


async def test_what_somebody_did_is_told_with_its_outcome(server: Server) -> None:
    made = await server.make_sandbox()
    await server.call("DELETE", f"/v1/sandboxes/{made['id']}")
    await server.call(
        "POST", "/v1/run", json={"argv": ["there-is-none"]}, headers=server.as_other()
    )
    found = (await read(server, f"sandbox={made['id']}"))["entries"]
    assert [entry["action"] for entry in found] == ["sandbox.kill", "sandbox.create"]
    assert {entry["owner"] for entry in found} == {server.owner}
    (run,) = (await read(server, "action=run"))["entries"]
    assert (run["outcome"], run["detail"]) == ("program_not_found", {"template": "python"})
    assert run["owner"] != server.owner
    assert (await read(server, f"action=run&owner={server.owner}"))["entries"] == []


async def test_pages_hold_all_entries_once_while_more_come(server: Server) -> None:
    for number in range(5):
        await server.host.store.audit.record("x", subject=str(number), token_id=None)
    subjects, cursor = [], ""
    while cursor is not None:
        page = await read(server, f"action=x&limit=2{cursor and f'&cursor={cursor}'}")
        subjects += [entry["subject"] for entry in page["entries"]]
        await server.host.store.audit.record("x", subject="later", token_id=None)
        cursor = page["next_cursor"]
    assert subjects == ["4", "3", "2", "1", "0"]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "cursor=-1", "cursor=x", "who=me"])
async def test_a_question_of_another_form_is_refused(server: Server, query: str) -> None:
    status, problem = await server.call("GET", f"/v1/audit?{query}")
    assert (status, problem["code"]) == (400, "invalid_request")
