"""Clients at random, over HTTP, of a server over the fake engine that is killed again and again.

`VMPOOL_TEST_SOAK` says for how many seconds, `VMPOOL_TEST_SEED` how it is diced.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest

from tests.churn import Tally, churn
from tests.soak import World, soak
from tests.worlds import fake_world

pytestmark = [pytest.mark.shares_host, pytest.mark.timeout(0)]


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A state directory for a server whose machines are local processes."""
    with fake_world(tmp_path_factory.getbasetemp() / "furnished") as found:
        yield found


async def test_whatever_is_asked_when_a_server_dies_the_next_one_tells_no_lie(
    world: World,
) -> None:
    seed = int(os.environ.get("VMPOOL_TEST_SEED", "4"))
    seconds = float(os.environ.get("VMPOOL_TEST_SOAK", "15"))
    answered = await soak(world, seed=seed, seconds=seconds)
    print(f"seed {seed}: {len(answered)} servers were ended, having answered {answered}")
    assert sum(answered) > len(answered) > 1


async def test_of_sandboxes_made_and_killed_by_the_score_nothing_is_left(world: World) -> None:
    seconds = float(os.environ.get("VMPOOL_TEST_SOAK", "15"))
    dice = random.Random(int(os.environ.get("VMPOOL_TEST_SEED", "4")))
    created = 0
    for _ in range(10):  # a busy machine may come to nothing between two ends of its server
        tally = Tally(goal=10_000, end=time.monotonic() + seconds)
        await churn(world, tally, dice)
        print(dict(tally.done))
        created += tally.done["created"]
        if created > 5:
            return
    pytest.fail(f"only {created} sandboxes were made")
