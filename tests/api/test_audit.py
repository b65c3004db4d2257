"""The audit log over HTTP: found by who, what and on which, a page at a time."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from vmpool.cli import audit as cli_audit
from vmpool.errors import ForbiddenError

if TYPE_CHECKING:
    from pathlib import Path

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
        await server.host.store.audit.record("x", subject=str(number), tenant_id="local")
    subjects, cursor = [], ""
    while cursor is not None:
        page = await read(server, f"action=x&limit=2{cursor and f'&cursor={cursor}'}")
        subjects += [entry["subject"] for entry in page["entries"]]
        await server.host.store.audit.record("x", subject="later", tenant_id="local")
        cursor = page["next_cursor"]
    assert subjects == ["4", "3", "2", "1", "0"]


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "cursor=-1", "cursor=x", "who=me"])
async def test_a_question_of_another_form_is_refused(server: Server, query: str) -> None:
    status, problem = await server.call("GET", f"/v1/audit?{query}")
    assert (status, problem["code"]) == (400, "invalid_request")


async def test_a_command_line_shows_the_log_over_all_pages(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_audit, "PAGE", 2)
    for number in range(5):
        await server.host.store.audit.record(
            "file.write", subject="box", tenant_id="local", detail={"path": f"/{number}\x1b[2J"}
        )
    token = ["--server", server.url, "--token", server.token, "--state", str(tmp_path)]

    def shown(*options: str) -> str:
        ended = CliRunner().invoke(cli_audit.command, [*token, *options], catch_exceptions=False)
        assert ended.exit_code == 0
        return ended.output

    table = (await asyncio.to_thread(shown, "--sandbox", "box", "-n", "3")).splitlines()
    assert [line.split()[2:6] for line in table[1:]] == [["local", "-", "file.write", "box"]] * 3
    assert ['"/4' in table[1], '"/2' in table[3], "\x1b" in "".join(table)] == [True, True, False]
    listed = json.loads(await asyncio.to_thread(shown, "--action", "file.write", "--json"))
    assert [entry["detail"]["path"][1] for entry in listed] == list("43210")


async def test_the_log_is_not_for_a_token_that_only_uses(server: Server, tmp_path: Path) -> None:
    words = ["--server", server.url, "--token", server.other_token, "--state", str(tmp_path)]
    with pytest.raises(ForbiddenError) as refused:
        await asyncio.to_thread(
            CliRunner().invoke, cli_audit.command, words, catch_exceptions=False
        )
    assert refused.value.error_code == "scope_missing"
