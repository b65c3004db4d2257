"""Command lines that pause, keep, roll back and fork, against a real server."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from vmpool.cli.program import program
from vmpool.errors import ConflictError, GuestError, InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.conftest import Server


class Terminal:
    """Runs command lines in a thread of this process."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    async def run(self, *words: str, code: int = 0) -> str:
        """Run a command line; return what it printed.

        Raises:
            VmpoolError: What ended it.
        """
        ended = await asyncio.to_thread(
            CliRunner(env=self._environment).invoke, program, words, catch_exceptions=False
        )
        assert ended.exit_code == code, ended.output
        return ended.output

    async def read(self, *words: str) -> Any:
        return json.loads(await self.run(*words, "--json"))


@pytest.fixture
def terminal(server: Server, tmp_path: Path) -> Terminal:
    return Terminal(
        {
            "VMPOOL_SERVER": server.url,
            "VMPOOL_TOKEN": server.token,
            "VMPOOL_STATE": str(tmp_path / "state"),
        }
    )


async def test_a_sandbox_is_put_aside_and_gone_on_with(terminal: Terminal) -> None:
    words = ("--on-expiry", "pause", "--idle-timeout", "60", "--clock", "frozen-at-snapshot")
    sandbox = (await terminal.run("sandbox", "create", *words)).strip()
    await terminal.run("pause", sandbox)
    assert "paused" in await terminal.run("sandbox", "list")
    shown = await terminal.run("sandbox", "show", sandbox)
    assert "then: pause" in shown
    with pytest.raises(ConflictError, match="paused"):
        await terminal.run("exec", sandbox, "--", "true")
    assert "expires " in await terminal.run("resume", sandbox, "--timeout", "100")
    await terminal.run("exec", sandbox, "--", "true")


async def test_one_that_wakes_by_itself_needs_no_resume(terminal: Terminal) -> None:
    sandbox = (await terminal.run("sandbox", "create", "--auto-resume")).strip()
    await terminal.run("pause", sandbox)
    await terminal.run("exec", sandbox, "--", "true")


async def test_a_checkpoint_is_kept_listed_gone_back_to_and_removed(terminal: Terminal) -> None:
    sandbox = (await terminal.run("sandbox", "create")).strip()
    kept = (await terminal.run("checkpoint", "create", sandbox, "before")).strip()
    nameless = await terminal.read("checkpoint", "create", sandbox)
    header, *lines = (await terminal.run("checkpoint", "list")).splitlines()
    assert header.split()[:5] == ["ID", "NAME", "SANDBOX", "TEMPLATE", "KEPT"]
    assert [line.split()[:5] for line in lines] == [
        [nameless["id"], "-", sandbox, "python", "memory"],
        [kept, "before", sandbox, "python", "memory"],
    ]
    with pytest.raises(InvalidRequestError, match="no disk"):
        await terminal.run("checkpoint", "create", sandbox, "--keep", "disk")
    assert await terminal.read("checkpoint", "list", "--sandbox", "other") == []
    await terminal.run("rollback", sandbox, "before")
    made = await terminal.read("sandbox", "create", "--checkpoint", "before", "--rng", "seed=7")
    assert made["checkpoint"] == kept
    assert kept in await terminal.run("sandbox", "show", made["id"])
    await terminal.run("checkpoint", "remove", "before", nameless["id"])
    with pytest.raises(NotFoundError, match="no checkpoint"):
        await terminal.run("rollback", sandbox, kept)


async def test_a_template_is_made_of_a_checkpoint(terminal: Terminal) -> None:
    sandbox = (await terminal.run("sandbox", "create", "--env", "A=1")).strip()
    await terminal.run("checkpoint", "create", sandbox, "before")
    await terminal.run("template", "create", "made", "--checkpoint", "before", "--ready", "0")
    await terminal.run("checkpoint", "create", sandbox, "before", "--move")
    await terminal.run("checkpoint", "remove", "before")
    made = (await terminal.run("sandbox", "create", "--template", "made")).strip()
    assert await terminal.run("exec", made, "--", "sh", "-c", "echo $A") == "1\n"
    await terminal.run("template", "remove", "made")


async def test_children_are_printed_and_have_what_was_sent(
    terminal: Terminal, tmp_path: Path
) -> None:
    sent, there = tmp_path / "sent", tmp_path / "there"
    sent.write_text("é")
    parent = (await terminal.run("sandbox", "create")).strip()
    words = ("-n", "3", "-e", "A=1", "-m", "n=1", "-f", f"{sent}:{there}", "--rng", "preserve")
    children = (await terminal.run("fork", parent, *words)).split()
    assert len(set(children) | {parent}) == 4
    assert there.read_text() == "é"
    told = await terminal.read("fork", parent)
    assert told["children"][0]["sandbox"]["parent"] == parent
    for bad in ("fair", "seed=", "seed=-1"):
        await terminal.run("fork", parent, "--rng", bad, code=2)


async def test_a_missing_child_is_told_and_the_others_are_printed(
    terminal: Terminal, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = (await terminal.run("sandbox", "create")).strip()
    there = await server.host.sandbox(parent, owner=server.owner)

    async def partly(*_: Any, **__: Any) -> list[Any]:
        return [there, GuestError("it never woke", code="guest_lost")]

    monkeypatch.setattr(server.host, "fork", partly)
    printed = await terminal.run("fork", parent, "-n", "2", code=1)
    assert printed.splitlines() == [parent, "vmpool: no child: it never woke [guest_lost]"]
