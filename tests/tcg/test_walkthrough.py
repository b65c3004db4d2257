"""The walk-through of the README, done as it stands there: every line of it, and its output."""

from __future__ import annotations

import contextlib
import doctest
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Ground, Server
from tests.tcg.conftest import TEMPLATE, UpServer

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host, pytest.mark.timeout(900)]

README = Path(__file__).parents[2] / "README.md"
HEADING = "## A walk-through"
KILLS = "kill -9"
"""What stands in the block of command lines in whose place the server is killed and started."""


@pytest.fixture
def state(ground: Ground, server: UpServer) -> Iterator[Ground]:
    """A state directory beside the shared server's, over the same images and snapshots."""
    with ground.beside("w") as beside:
        yield beside


def blocks() -> list[tuple[str, str]]:
    """Return language and content of each block of the walk-through."""
    section = README.read_text().split(f"\n{HEADING}\n")[1].split("\n## ")[0]
    return re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def done(block: str, names: dict[str, Any]) -> str:
    """Do what an interpreter's session says; return where what it said was something else."""
    told: list[str] = []
    session = doctest.DocTestParser().get_doctest(block, names, HEADING, str(README), 0)
    assert session.examples
    session.globs = names
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.FAIL_FAST).run(
        session, out=told.append, clear_globs=False
    )
    return "".join(told)


def killed(first: Server, state: Ground) -> Server:
    """Kill a server, and return one in its place, where its clients look for it."""
    port = first.url.rpartition(":")[2]
    assert first.stop(signal.SIGKILL) == -signal.SIGKILL
    return Server(state, TEMPLATE, "serve", listen=f"127.0.0.1:{port}")


def test_a_researcher_builds_branches_goes_back_and_outlives_the_server(
    state: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMPOOL_STATE", str(state.state))
    names: dict[str, Any] = {}
    kills = 0
    with contextlib.ExitStack() as running:
        latest: Server = running.enter_context(UpServer(state, "--ready", "1"))
        running.callback(lambda: names["client"].close() if "client" in names else None)
        for language, block in blocks():
            if language == "python":
                different = done(block, names)
                assert not different, different
            elif KILLS in block:
                latest = running.enter_context(killed(latest, state))
                kills += 1
    assert kills == 1
    assert state.clones == []
