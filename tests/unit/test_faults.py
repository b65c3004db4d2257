"""A server that dies between any two steps leaves nothing that lies, and keeps what it promised."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fake_host, turns
from tests.api.conftest import IMAGE
from tests.crashes import places, verb_of
from tests.fake_host import OWNER, opened
from tests.fakes import FakeEngine
from vmpool import snapshot
from vmpool.lifecycle import SandboxState

ROOT = Path(__file__).parents[2]


def died_at(place: str, state: Path) -> subprocess.CompletedProcess[str]:
    """Return what is left of a server that came by a place."""
    return subprocess.run(
        [sys.executable, "-m", "tests.faulty_server", state, place],
        cwd=ROOT, capture_output=True, check=False, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("place", places())
async def test_what_was_promised_before_a_crash_is_there_after_it(
    place: str, state: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    died = await asyncio.to_thread(died_at, place, state)
    assert died.returncode == -signal.SIGKILL, died.stderr
    fake_host.keep(state, tmp_path_factory.getbasetemp() / "furnished")
    (_, first), (_, asleep) = (line.split() for line in died.stdout.splitlines())
    verb = verb_of(place)
    async with opened(state, FakeEngine()) as host:
        await host.catalogue.settled(IMAGE)
        await turns.consistent(host)
        assert not list((state / "checkpoints").glob(f"{snapshot.PARTIAL}*"))
        there = {sandbox.id: sandbox.state for sandbox in host.sandboxes(owner=OWNER)}
        if verb == "kill":  # asked for and not answered: done, or not begun
            assert there.get(first, SandboxState.RUNNING) is SandboxState.RUNNING
            assert first in there or (await host.store.sandbox(first)).end_reason is not None
        elif verb == "pause":
            assert there[first] in {SandboxState.RUNNING, SandboxState.PAUSED}
        else:
            assert there[first] is SandboxState.RUNNING
        assert there[asleep] is SandboxState.PAUSED or verb == "resume"
        names = {kept.name for kept in await host.checkpoints(owner=OWNER, sandbox=None)}
        assert "kept" in names
        assert "spare" in names or verb == "remove"
        # It all goes on from there.
        await host.resume(asleep, owner=OWNER, timeout=None)
        await turns.answers(await host.sandbox(asleep, owner=OWNER))
        await host.rollback(asleep, owner=OWNER, checkpoint="kept")
        await turns.consistent(host)
