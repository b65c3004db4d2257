"""Two tenants of a real server, made beside it as it runs; each has its own, and so much of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import vmpool
from vmpool.errors import ConflictError, NotFoundError, QuotaError

if TYPE_CHECKING:
    from tests.tcg.conftest import UpServer

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host]

SECRET = "planted-in-a-real-guest-51c8"
KNOWN = "import os; print(os.environ['PASSWORD'][::-1])"


def commanded(server: UpServer, *words: str) -> str:
    """Return what the command line says, on the state directory of a server that runs."""
    program = str(Path(sys.executable).with_name("vmpool"))
    argv = [program, *words, "--state", str(server.ground.state)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def test_tenants_share_a_host_and_nothing_else(server: UpServer) -> None:
    commanded(server, "tenant", "create", "acme", "--sandboxes", "1")
    acme, other = (
        commanded(server, "token", "create", "ci", "--tenant", "acme"),
        commanded(server, "token", "create", "other"),
    )
    with (
        vmpool.Client(server.url, token=acme) as mine,
        vmpool.Client(server.url, token=other) as theirs,
    ):
        held = mine.create(timeout=600, secrets={"PASSWORD": SECRET})
        assert held.run(KNOWN).check().stdout.strip() == SECRET[::-1]
        with pytest.raises(QuotaError) as refused:
            mine.create()
        assert (refused.value.resource, refused.value.limit) == ("sandboxes", 1)
        assert mine.usage().used["memory_bytes"] > 0
        with pytest.raises(NotFoundError):
            theirs.attach(held.id).look()
        assert list(theirs.sandboxes()) == []

        held.pause()
        assert (mine.usage().used["sandboxes"], mine.usage().used["paused"]) == (0, 1)
        held.resume()
        assert held.run(KNOWN).check().stdout.strip() == SECRET[::-1]
        kept = held.checkpoint("kept")
        with pytest.raises(NotFoundError):
            theirs.checkpoints.look(kept.id)
        with pytest.raises(ConflictError):
            mine.checkpoints.export_to(kept, server.ground.state / "parcel")
        journal = list(server.ground.state.glob("vmpool.db*"))
        journal += server.ground.state.glob("checkpoints/*/manifest.json")
        assert len(journal) >= 2
        assert not [path for path in journal if SECRET.encode() in path.read_bytes()]
        assert not [line for line in server.lines if SECRET in line]
        held.kill()
        mine.checkpoints.remove(kept)
        assert mine.usage().used["sandboxes"] == 0
    commanded(server, "tenant", "remove", "acme")
