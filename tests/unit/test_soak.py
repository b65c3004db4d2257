"""Clients at random, over HTTP, of a server over the fake engine that is killed again and again.

`VMPOOL_TEST_SOAK` says for how many seconds, `VMPOOL_TEST_SEED` how it is diced.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import fake_host
from tests.api.conftest import IMAGE
from tests.serving import Ground, Server
from tests.soak import World, soak

pytestmark = [pytest.mark.shares_host, pytest.mark.timeout(0)]

ROOT = Path(__file__).parents[2]
SETTINGS = """\
insecure_no_tokens = true
on_stop = "keep"
[checkpoints]
waiting = 0
"""


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A state directory for a server whose machines are local processes."""
    # Short: the paths of sockets in it have to fit into a socket's address.
    state = Path(tempfile.mkdtemp(prefix="vmpool-", dir="/tmp"))
    fake_host.furnish(state, tmp_path_factory.getbasetemp() / "furnished")
    (state / "vmpool.toml").write_text(SETTINGS)
    environment = {
        "VMPOOL_CONFIG": os.fspath(state / "vmpool.toml"),
        "VMPOOL_STATE": os.fspath(state),
        "VMPOOL_LISTEN": "127.0.0.1:0",
        "PYTHONPATH": os.fspath(ROOT),
    }
    program = (sys.executable, "-m", "tests.api.fake_server")
    ground = Ground(state)
    yield World(
        ground=ground,
        template={"name": IMAGE, "image": IMAGE, "limits": {"ready": 1}},
        serve=lambda: Server(ground, IMAGE, "serve", environment=environment, program=program),
        remembers=False,
    )
    shutil.rmtree(state)


async def test_whatever_is_asked_when_a_server_dies_the_next_one_tells_no_lie(
    world: World,
) -> None:
    seed = int(os.environ.get("VMPOOL_TEST_SEED", "4"))
    seconds = float(os.environ.get("VMPOOL_TEST_SOAK", "15"))
    answered = await soak(world, seed=seed, seconds=seconds)
    print(f"seed {seed}: {len(answered)} servers were ended, having answered {answered}")
    assert sum(answered) > len(answered) > 1
