"""Clients at random of a server on real machines that is killed again and again.

Takes long to be worth something: `VMPOOL_TEST_SOAK` says for how many seconds, without it nothing
is tried. Over the fake engine it always is.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.serving import Ground, Server
from tests.soak import World, soak
from tests.tcg.conftest import TEMPLATE, UpServer

SECONDS = float(os.environ.get("VMPOOL_TEST_SOAK", "0"))

pytestmark = [
    pytest.mark.tcg,
    pytest.mark.shares_host,
    pytest.mark.timeout(0),
    pytest.mark.skipif(not SECONDS, reason="VMPOOL_TEST_SOAK does not say for how long"),
]

SETTINGS = """\
insecure_no_tokens = true
on_stop = "keep"
[checkpoints]
waiting = 0
"""


@pytest.fixture
def world(ground: Ground, server: UpServer) -> Iterator[World]:
    """A state directory beside the shared server's, over the same images and snapshots."""
    with ground.beside("s") as other:
        settings = other.state / "vmpool.toml"
        settings.write_text(SETTINGS)
        environment = {"VMPOOL_CONFIG": os.fspath(settings)}
        image = (other.state / "images/names" / TEMPLATE).read_text()
        yield World(
            ground=other,
            template={"name": TEMPLATE, "image": image, "limits": {"ready": 1}},
            serve=lambda: Server(other, TEMPLATE, "serve", environment=environment),
            remembers=True,
        )


async def test_whatever_is_asked_when_a_server_dies_the_next_one_tells_no_lie(
    world: World,
) -> None:
    seed = int(os.environ.get("VMPOOL_TEST_SEED", "4"))
    answered = await soak(world, seed=seed, seconds=SECONDS)
    print(f"seed {seed}: {len(answered)} servers were ended, having answered {answered}")
    assert sum(answered) > len(answered) > 1
