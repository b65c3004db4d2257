"""`vmpool run-code` and `vmpool context` against a real server."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.api.test_cli import Terminal
from vmpool.cli.run_code import cells

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.conftest import Server


@pytest.fixture
def terminal(server: Server, tmp_path: Path) -> Terminal:
    return Terminal(
        {
            "VMPOOL_SERVER": server.url,
            "VMPOOL_TOKEN": server.token,
            "VMPOOL_STATE": os.fspath(tmp_path / "state"),
        }
    )


async def test_source_finds_what_source_before_it_left(terminal: Terminal, tmp_path: Path) -> None:
    sandbox = (await terminal.succeed("sandbox", "create")).decode().strip()
    source = tmp_path / "source.py"
    source.write_text("x = 41\ndef f():\n    return x + 1\n")
    await terminal.succeed("run-code", sandbox, source)
    assert await terminal.succeed("run-code", sandbox, stdin=b"print('a')\nf()") == b"a\n42\n"
    bash = ("run-code", sandbox, "--language", "bash", "-e", "Y=2", "--code")
    assert await terminal.succeed(*bash, "cd /; echo $Y") == b"2\n"
    ended = await terminal.run(*bash, "pwd; exit 3")
    assert (ended.code, ended.stdout) == (3, b"/\n")
    assert "its context begins anew, without its state" in ended.stderr
    late = await terminal.run("run-code", sandbox, "--timeout", "0.2", "--code", "!sleep 60")
    assert late.code == 124


async def test_contexts_are_made_listed_and_closed(terminal: Terminal) -> None:
    sandbox = (await terminal.succeed("sandbox", "create")).decode().strip()
    context = (await terminal.succeed("context", "create", sandbox, "--cwd", "/")).decode().strip()
    within = ("run-code", sandbox, "--context", context, "--code")
    assert await terminal.succeed(*within, "x = 1\n!pwd") == b"/\n"
    assert context.encode() in await terminal.succeed("context", "list", sandbox)
    await terminal.succeed("context", "interrupt", sandbox, context)
    await terminal.succeed("context", "restart", sandbox, context)
    assert (await terminal.run(*within, "x")).stderr.endswith("name 'x' is not defined\n")
    await terminal.succeed("context", "close", sandbox, context)
    ended = await terminal.run(*within, "1")
    assert (ended.code, "context_not_found" in ended.stderr) == (125, True)


def test_a_block_that_is_typed_ends_with_an_empty_line() -> None:
    typed = iter(["x = 1", "", "def f():", "    return 1", "", "%%bash", "echo 1", "", "f()"])

    def read(_: str) -> str:
        try:
            return next(typed)
        except StopIteration as err:
            raise EOFError from err

    assert list(cells(read)) == ["x = 1", "def f():\n    return 1", "%%bash\necho 1", "f()"]
