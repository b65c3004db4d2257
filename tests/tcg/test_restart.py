"""A server that is killed leaves nothing that the next start does not find and settle."""

from __future__ import annotations

import shutil
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import Ground, client
from tests.tcg.conftest import UpServer

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host, pytest.mark.timeout(900)]


@pytest.fixture
def other(ground: Ground, server: UpServer) -> Iterator[Ground]:
    """A state directory beside the shared server's, over the same images and snapshots."""
    state = Path(f"{ground.state}-r")
    state.mkdir()
    for name in ("images", "snapshots"):
        (state / name).symlink_to((ground.state / name).resolve())
    yield Ground(state)
    shutil.rmtree(state)


async def test_after_kill_9_the_next_start_leaves_no_orphan_and_no_lying_row(other: Ground) -> None:
    with UpServer(other, "--ready", "1") as first, first.process:
        async with client(first) as api:
            status, made = await api.call(
                "POST", "/v1/sandboxes", json={"template": "python", "timeout": 600}
            )
            assert status == 201, made
        orphans = set(other.hypervisors())
        assert orphans
        left = {clone.name for clone in other.clones}
        assert first.stop(signal.SIGKILL) == -signal.SIGKILL
        assert orphans <= set(other.hypervisors())
        half = other.state / "snapshots/.partial-half"
        half.mkdir()

    with UpServer(other, "--ready", "1") as second:
        assert orphans.isdisjoint(other.hypervisors())
        assert left.isdisjoint(clone.name for clone in other.clones)
        assert not half.exists()
        assert not any("booting" in line for line in second.lines), "the snapshot was not reused"
        async with client(second) as api:
            status, problem = await api.call("GET", f"/v1/sandboxes/{made['id']}")
            assert (status, problem["code"]) == (410, "sandbox_ended")
            assert "server_lost" in problem["detail"]
            assert (await api.run(code="print(7)"))["stdout"] == "7\n"
        assert second.stop(signal.SIGTERM) == 0

    assert other.clones == []
    with sqlite3.connect(other.state / "vmpool.db") as journal:
        (open_rows,) = journal.execute(
            "SELECT count(*) FROM sandboxes WHERE ended_ns IS NULL"
        ).fetchone()
    journal.close()
    assert open_rows == 0


def test_a_second_server_on_the_same_state_is_refused_in_words(
    ground: Ground, server: UpServer
) -> None:
    rival = UpServer(ground, "--check")
    assert rival.process.wait(120) != 0
    rival.stop()
    said = "".join(rival.lines)
    assert "another server runs on" in said
    assert "Traceback" not in said
