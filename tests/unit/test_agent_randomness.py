"""How the random generators of a clone's processes start, as it was told when it woke."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import fake_guest
from tests.connected_agent import connected, output, run
from vmpool.agent import Agent
from vmpool.agent.asking import ask
from vmpool.errors import GuestError, InvalidRequestError
from vmpool.model import Code, Command, Identity, Preserve, Rng, Seed, Unique

pytestmark = pytest.mark.shares_host

WARM_UP = "import random\nrandom.seed(1)\n"
WARM_DRAWS = 0.13436424411240122  # what random.seed(1) is followed by, in every Python 3

DRAW = """
import json, os, random
print(json.dumps({
    "random": random.random(),
    "hash": hash("vmpool"),
    "urandom": os.urandom(16).hex(),
    "VMPOOL_SEED": os.environ.get("VMPOOL_SEED"),
}))
"""


@asynccontextmanager
async def warm_guest(directory: Path) -> AsyncIterator[Agent]:
    """A guest whose warm interpreter would draw the same numbers as any other's."""
    directory.mkdir(exist_ok=True)
    script = directory / "warm.py"
    script.write_text(WARM_UP)
    with fake_guest.running(directory, "--warm-up", str(script)) as path:
        async with connected(path) as agent:
            yield agent


async def wake(agent: Agent, rng: Rng) -> tuple[str, ...]:
    receipt = await agent.identify(Identity.fresh("clone"), rng=rng, timeout=10)
    return receipt.generators


async def drawn(agent: Agent) -> dict[str, Any]:
    return dict(json.loads(output(await run(agent, Code(source=DRAW)))))


async def drawn_anew(agent: Agent) -> dict[str, Any]:
    return dict(json.loads(output(await run(agent, Command(argv=("python3", "-c", DRAW))))))


async def test_the_same_seed_begins_every_run_of_two_clones_alike(tmp_path: Path) -> None:
    found = []
    for name in ("one", "two"):
        async with warm_guest(tmp_path / name) as agent:
            assert "random" in await wake(agent, Seed(2**64 - 1))
            await agent.stock(timeout=10)  # one that has rehearsed, and one for which none waits
            found += [await drawn(agent) for _ in range(4)]
    assert len({each["random"] for each in found}) == 1
    assert len({each["urandom"] for each in found}) == len(found)
    assert found[0]["random"] != WARM_DRAWS
    assert found[0]["VMPOOL_SEED"] == str(2**64 - 1)


async def test_programs_of_clones_with_one_seed_hash_alike(tmp_path: Path) -> None:
    async with warm_guest(tmp_path) as agent:
        await wake(agent, Seed(7))
        seeded = [await drawn_anew(agent) for _ in range(2)]
        assert seeded[0]["hash"] == seeded[1]["hash"]
        assert seeded[0]["VMPOOL_SEED"] == "7"
        await wake(agent, Unique())
        unique = [await drawn_anew(agent) for _ in range(2)]
        assert unique[0]["hash"] != unique[1]["hash"]
        assert unique[0]["VMPOOL_SEED"] is None


async def test_what_the_caller_puts_in_the_environment_goes_before_the_seed(guest: Path) -> None:
    async with connected(guest) as agent:
        await wake(agent, Seed(7))
        line = Command(argv=("sh", "-c", "echo $VMPOOL_SEED"), env={"VMPOOL_SEED": "8"})
        assert output(await run(agent, line)) == b"8\n"


async def test_preserved_generators_go_on_where_the_warm_interpreter_was(tmp_path: Path) -> None:
    async with warm_guest(tmp_path) as agent:
        await agent.stock(timeout=10)
        generators = await wake(agent, Preserve())
        assert "random" not in generators
        found = [await drawn(agent) for _ in range(4)]
    assert [each["random"] for each in found] == [WARM_DRAWS] * 4
    assert len({each["urandom"] for each in found}) == 4


async def test_a_clone_that_preserves_keeps_the_seed_that_it_has(tmp_path: Path) -> None:
    async with warm_guest(tmp_path) as agent:
        await wake(agent, Seed(7))
        before = await drawn(agent)
        assert "random" in await wake(agent, Preserve())
        assert (await drawn(agent))["random"] == before["random"]


async def test_a_clone_that_is_to_be_unique_forgets_seed_and_preservation(tmp_path: Path) -> None:
    async with warm_guest(tmp_path) as agent:
        for before in (Seed(7), Preserve()):
            await wake(agent, before)
            known = (await drawn(agent))["random"]
            assert "random" in await wake(agent, Unique())
            fresh = [(await drawn(agent))["random"] for _ in range(2)]
            assert len({known, *fresh}) == 3


@pytest.mark.parametrize("value", [-1, 2**64, True, "7", None])
async def test_what_is_no_seed_is_refused(guest: Path, value: object) -> None:
    request = {
        "op": "identify",
        "hostname": "clone",
        "machine_id": "0" * 32,
        "seed": "0" * 128,
        "rng": {"seed": value},
        "clock_ns": 0,
    }
    async with connected(guest) as agent:
        with pytest.raises(InvalidRequestError, match="seed of 64 bits"):
            await ask(agent._link, request, timeout=10)


async def test_a_guest_that_understood_another_policy_is_refused(tmp_path: Path) -> None:
    with fake_guest.running(tmp_path, "--lie", "rng") as path:
        async with connected(path) as agent:
            with pytest.raises(GuestError) as raised:
                await wake(agent, Seed(7))
    assert raised.value.error_code == "guest_protocol"
