"""Command lines about processes that stay: start, list, attach, and a shell at a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import re
import signal
import struct
import termios
from typing import TYPE_CHECKING

import pytest

from tests.api.test_cli import VMPOOL, Terminal

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.api.conftest import Server

GRACE = 60.0


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
async def sandbox(server: Server) -> str:
    return str((await server.make_sandbox())["id"])


class Screen:
    """A terminal with a command line in it: what it shows, and what is typed."""

    def __init__(self, fd: int, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self._fd = fd
        self._seen = b""

    def type(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def resize(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    async def shows(self, pattern: bytes) -> None:
        """Return once it has shown something since it last did."""
        async with asyncio.timeout(GRACE):
            while not (found := re.search(pattern, self._seen)):
                self._seen += await asyncio.to_thread(os.read, self._fd, 4096)
        self._seen = self._seen[found.end() :]

    @property
    def settings(self) -> list[object]:
        return termios.tcgetattr(self._fd)[:4]


@contextlib.asynccontextmanager
async def screen(terminal: Terminal, *words: str) -> AsyncIterator[Screen]:
    """Run a command line in a terminal of its own."""
    ours, theirs = os.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    try:
        process = await asyncio.create_subprocess_exec(
            VMPOOL, *words, env=os.environ | terminal.environment,
            stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip
        try:
            yield Screen(ours, process)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
    finally:
        os.close(ours)
        os.close(theirs)


async def test_a_program_is_left_in_the_background_listed_and_attached_to(
    terminal: Terminal, sandbox: str
) -> None:
    line = "echo first; read word; echo got $word; exit 7"
    words = ("exec", "--background", "--tag", "mine", sandbox, "--", "bash", "-c", line)
    pid = (await terminal.succeed(*words)).decode().strip()
    (row,) = (await terminal.succeed("ps", sandbox)).decode().splitlines()[1:]
    assert row.split()[:5] == [pid, "mine", "user", "-", "running"]
    assert row.endswith("bash -c 'echo first; read word; echo got $word; exit 7'")
    ended = await terminal.run("attach", "--stdin", sandbox, pid, stdin=b"it\n")
    assert (ended.code, ended.stdout, ended.stderr) == (7, b"first\ngot it\n", "")
    again = await terminal.run("attach", "--backlog", "7", sandbox, pid)
    assert (again.code, again.stdout) == (7, b"got it\n")
    (listed,) = json.loads(await terminal.succeed("ps", "--json", sandbox))
    assert listed["ended"]["exit_code"] == 7


@pytest.mark.parametrize(
    ("words", "out"),
    [
        (("--code", "import os; print(os.environ['A'])", "-e", "A=1"), "1\n"),
        (("--language", "bash", "--code", "echo $A", "-e", "A=2"), "2\n"),
    ],
)
async def test_source_goes_to_the_background_too(
    terminal: Terminal, sandbox: str, words: tuple[str, ...], out: str
) -> None:
    told = json.loads(await terminal.succeed("exec", "-b", "--json", sandbox, *words))
    lines = await terminal.succeed("attach", "--json", sandbox, str(told["pid"]))
    events = [json.loads(line) for line in lines.splitlines()]
    types = [event["type"] for event in events]
    assert (types[0], types[-1]) == ("attached", "exit")
    assert types[1:-1] == ["stdout"] * len(types[1:-1])  # `print` writes in pieces
    assert "".join(event["data"] for event in events[1:-1]) == out


async def test_leaving_an_attached_process_lets_it_go_on(terminal: Terminal, sandbox: str) -> None:
    words = ("exec", "-b", sandbox, "--", "bash", "-c", "echo on; read x")
    pid = (await terminal.succeed(*words)).decode().strip()
    async with terminal.starting("attach", sandbox, pid) as attached:
        assert attached.stdout is not None
        assert await attached.stdout.readline() == b"on\n"
        attached.send_signal(signal.SIGINT)
        assert await attached.wait() == 130
    (listed,) = json.loads(await terminal.succeed("ps", "--json", sandbox))
    assert listed["ended"] is None


async def test_what_cannot_be_done_says_why(terminal: Terminal, sandbox: str) -> None:
    missing = await terminal.run("attach", sandbox, "1")
    assert (missing.code, "process_not_found" in missing.stderr) == (125, True)
    no_terminal = await terminal.run("shell", sandbox)
    assert (no_terminal.code, "needs a terminal" in no_terminal.stderr) == (125, True)
    both = await terminal.run("exec", "-b", "-i", sandbox, "--", "true")
    assert both.code == 125


async def test_a_shell_has_this_terminals_size_and_keys_and_is_returned_to(
    terminal: Terminal, sandbox: str
) -> None:
    program = ("--", "/bin/bash", "--norc", "-i")
    async with screen(terminal, "shell", sandbox, "-e", "PS1=ready> ", *program) as shown:
        before = shown.settings
        await shown.shows(b"ready> ")
        shown.type(b"stty size\r")
        await shown.shows(b"30 100\r\n")
        shown.resize(40, 120)
        shown.type(b"until [ \"$(stty size)\" = '40 120' ]; do :; done; echo re''sized\r")
        await shown.shows(b"resized\r\n")
        shown.type(b"bash -c 'echo o\"\"n; exec sleep 1000'\r")
        await shown.shows(b"on\r\n")
        shown.type(b"\x03")
        await shown.shows(b"ready> ")
        shown.type(b"kept=state\r\x1d")
        await shown.shows(rb"detached; to return: vmpool attach \w+ \d+")
        assert await shown.process.wait() == 0
        assert shown.settings == before
    (listed,) = json.loads(await terminal.succeed("ps", "--json", sandbox))
    assert (listed["tag"], listed["ended"]) == ("shell", None)
    async with screen(terminal, "attach", sandbox, str(listed["pid"])) as shown:
        await shown.shows(b"kept=state")
        await shown.shows(b"ready> ")
        shown.type(b"echo still $kept; exit 6\r")
        await shown.shows(b"still state\r\n")
        assert await shown.process.wait() == 6
