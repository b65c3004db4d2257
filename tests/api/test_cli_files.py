"""`vmpool cp` and `vmpool watch` against a real server."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
from typing import TYPE_CHECKING

import pytest

from tests.api.test_cli import Terminal

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


@pytest.fixture
async def sandbox(terminal: Terminal) -> str:
    return (await terminal.succeed("sandbox", "create")).decode().strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with a file, a program, an empty directory and a link."""
    top = tmp_path / "tree"
    (top / "below" / "empty").mkdir(parents=True)
    (top / "below" / "file").write_bytes(os.urandom(300_000))
    (top / "tool").write_text("#!/bin/sh\n")
    (top / "tool").chmod(0o755)
    (top / "link").symlink_to("below/file")
    return top


def shape(top: Path) -> dict[str, object]:
    """Return what is in a directory, with contents, modes and targets."""
    return {
        str(path.relative_to(top)): (
            str(path.readlink())
            if path.is_symlink()
            else (path.read_bytes(), path.stat().st_mode)
            if path.is_file()
            else None
        )
        for path in sorted(top.rglob("*"))
    }


async def test_directories_go_in_and_come_back_as_they_were(
    terminal: Terminal, sandbox: str, tree: Path, tmp_path: Path
) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    (tmp_path / "single").write_bytes(b"1")
    await terminal.succeed("cp", tree, tmp_path / "single", f"{sandbox}:{there}/")
    assert shape(there / "tree") == shape(tree)
    assert (there / "single").read_bytes() == b"1"
    back.mkdir()
    await terminal.succeed("cp", f"{sandbox}:{there}/tree", f"{sandbox}:{there}/single", back)
    assert shape(back / "tree") == shape(tree)
    assert (back / "single").read_bytes() == b"1"


async def test_one_source_gets_the_targets_name_unless_that_is_a_directory(
    terminal: Terminal, sandbox: str, tree: Path, tmp_path: Path
) -> None:
    await terminal.succeed("cp", tree, f"{sandbox}:{tmp_path}/copy")
    assert shape(tmp_path / "copy") == shape(tree)
    await terminal.succeed("cp", tree / "tool", f"{sandbox}:{tmp_path}/copy")
    await terminal.succeed("cp", tree / "tool", f"{sandbox}:{tmp_path}/copy/other")
    assert (tmp_path / "copy/tool").read_bytes() == (tmp_path / "copy/other").read_bytes()
    await terminal.succeed("cp", f"{sandbox}:{tmp_path}/copy/tool", tmp_path / "named")
    assert (tmp_path / "named").read_text() == "#!/bin/sh\n"


async def test_what_is_refused_is_told_and_the_rest_is_copied(
    terminal: Terminal, sandbox: str, tree: Path, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    (there / "tree" / "tool").mkdir(parents=True)
    os.mkfifo(tree / "pipe")
    ended = await terminal.run("cp", tree, f"{sandbox}:{there}")
    assert ended.code == 1
    assert "[is_a_directory]" in ended.stderr
    assert f"left out: {tree}/pipe is no file" in ended.stderr
    assert (there / "tree/below/file").read_bytes() == (tree / "below/file").read_bytes()


async def test_what_would_lead_out_of_the_target_is_left_out(
    terminal: Terminal, sandbox: str, tree: Path, tmp_path: Path
) -> None:
    (tree / "absolute").symlink_to("/etc/passwd")
    (tree / "up").symlink_to("../../up")
    ended = await terminal.run("cp", f"{sandbox}:{tree}", tmp_path / "back")
    assert ended.code == 0
    assert ended.stderr.count("left out: ") == 2
    found = shape(tmp_path / "back")
    assert "link" in found
    assert not found.keys() & {"absolute", "up"}


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("a", "b"), 2, "SANDBOX:/PATH"),
        (("a", "x:/b", "y:/c"), 2, "SANDBOX:/PATH"),
        (("/there/is/none", "{sandbox}:/tmp/x"), 1, "[file_unreadable]"),
        (("{sandbox}:/there/is/none", "."), 1, "[file_not_found]"),
        (("{sandbox}:/etc/hostname", "/there/is/none"), 1, "[file_unwritable]"),
    ],
)
async def test_what_cannot_be_copied_is_said(
    terminal: Terminal, sandbox: str, argv: tuple[str, ...], code: int, words: str
) -> None:
    ended = await terminal.run("cp", *(word.format(sandbox=sandbox) for word in argv))
    assert ended.code == code, ended.stderr
    assert words in ended.stderr


async def test_changes_are_printed_as_they_happen(
    terminal: Terminal, sandbox: str, tmp_path: Path
) -> None:
    top = tmp_path / "top"
    top.mkdir()
    async with terminal.starting("watch", "--json", "--recursive", sandbox, top) as watched:
        assert watched.stdout is not None
        assert json.loads(await watched.stdout.readline()) == {"type": "watching"}
        (top / "sub").mkdir()
        assert json.loads(await watched.stdout.readline())["directory"] is True
        top.rename(tmp_path / "elsewhere")
        assert json.loads(await watched.stdout.readline())["event"] == "gone"
        assert await watched.wait() == 0
    ended = await terminal.run("watch", sandbox, f"{tmp_path}/nowhere")
    assert (ended.code, "[file_not_found]" in ended.stderr) == (1, True)


async def test_changes_are_printed_for_people(
    terminal: Terminal, sandbox: str, tmp_path: Path
) -> None:
    top = tmp_path / "top"
    top.mkdir()
    async with terminal.starting("watch", sandbox, top) as watched:
        assert watched.stdout is not None
        first = asyncio.create_task(watched.stdout.readline())
        for number in itertools.count():  # it does not say when it begins
            (top / f"try-{number}").mkdir()
            if (await asyncio.wait({first}, timeout=0.05))[0]:
                break
        assert re.fullmatch(rb"created    try-\d+/\n", await first)
        (top / "try-0").rename(top / "\x1b]0;mine\x07")
        top.rename(tmp_path / "elsewhere")
        rest = await watched.stdout.read()
        assert rest.decode().endswith("moved      try-0/ -> \ufffd]0;mine\ufffd\ngone\n")
        assert await watched.wait() == 0
