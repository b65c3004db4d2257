"""Guests that take all that they can: their neighbours go on, and nothing of them stays.

What it costs the neighbours is printed, not judged: that takes a machine that does nothing else.
"""

from __future__ import annotations

import statistics
import time

import pytest

from tests import estate
from tests.estate import asked
from tests.serving import Api, Ground, Server, until

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host]

ROUNDS = 5
STOPPED = "sudo sh -c 'kill -STOP $(pgrep -f vmpool_agent | head -n 1)'"

ATTACKS = {
    "disk": "while :; do cat /dev/zero > /home/user/fill; done",
    "memory": "while :; do python3 -c 'x = []\nwhile True: x.append(bytearray(1 << 20))'; done",
    "processes": "bomb() { bomb | bomb & }; while :; do bomb; done",
    "output": "yes $(printf '%4000s' x) & yes >&2",
    "processor": "for i in 1 2 3 4; do (while :; do :; done) & done; wait",
    "silence": STOPPED,
}


async def latency_ms(api: Api, sandbox: str) -> float:
    """Return how long a sandbox takes for something small; it must do it."""
    took = []
    for number in range(ROUNDS):
        began = time.perf_counter()
        told = await api.execute(sandbox, argv=["/bin/sh", "-c", f"echo {number}"])
        took.append((time.perf_counter() - began) * 1000)
        assert (told["stdout"], told["exit_code"]) == (f"{number}\n", 0), told
    return statistics.median(took)


@pytest.mark.parametrize("attack", ATTACKS)
async def test_a_guest_that_takes_all_leaves_its_neighbour_alone(
    api: Api, server: Server, attack: str
) -> None:
    async with api.sandbox(timeout=900) as attacker, api.sandbox(timeout=900) as neighbour:
        await latency_ms(api, neighbour)
        quiet = await latency_ms(api, neighbour)
        clone = estate.clone_of(server.ground, attacker)
        line = {"argv": ["/bin/bash", "-c", ATTACKS[attack]], "tag": attack}
        await asked(api, "POST", f"/v1/sandboxes/{attacker}/processes", 201, **line)
        beside = await latency_ms(api, neighbour)
        print(f"{attack}: neighbour took {beside:.1f} ms, before it {quiet:.1f} ms")
        await asked(api, "DELETE", f"/v1/sandboxes/{attacker}", 204)
        assert (await api.execute(neighbour, argv=["true"]))["exit_code"] == 0
    await until(lambda: _is_gone(server.ground, clone))


async def _is_gone(ground: Ground, clone: str) -> bool:
    return clone not in {at.name for at in ground.clones}
