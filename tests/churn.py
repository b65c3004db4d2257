"""Churn: sandboxes made and killed by the thousand, of a server that nothing spares.

    python -m tests.churn --creates 10000 --seconds 3600 [--engine fake|qemu] [--log FILE]

Clients leave in the middle of their requests, hypervisors are killed, and the server with them. At
the end nothing may be left: no process, file, row, namespace, link, rule or control group. A run is
bounded by a number and by time, whichever comes first, and adds to what the log has of others that
ended clean.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests import estate, leftovers, seclusion
from tests.ballast import LEAST, WARM, Ballast
from tests.remains import Remains
from tests.serving import Api, Server, until
from tests.soak import LEAVING, World
from tests.worlds import fake_world, qemu_world
from vmpool.engine.qemu import record

CLIENTS = 8
LIFE_SECONDS = (2.0, 20.0)
"""For how long a server serves before it is killed."""

CALM = 8
"""The last one of so many servers is left alone longer: its memory is watched."""

CALM_CREATES = WARM + 2 * LEAST
"""Until it has made so many sandboxes: its weight can be told from then on."""

LEAVES, KILLED, EXECUTES = 0.1, 0.05, 0.2
"""How often a client leaves a request, a hypervisor is killed, something is executed."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was done.

    Attributes:
        goal: How many sandboxes to make.
        end: When to stop, on the monotonic clock.
        ballast: The memory of each server that was left alone, over its life.
    """

    goal: int
    end: float
    done: Counter[str] = field(default_factory=Counter)
    ballast: list[Ballast] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether enough was made, or time is up."""
        return self.done["created"] >= self.goal or time.monotonic() > self.end


async def churn(world: World, tally: Tally, chance: random.Random) -> None:
    """Make and kill until it is over, then require that nothing is left.

    Raises:
        AssertionError: Something is left, or a server's memory grows.
    """
    await _empty_life(world)
    before = Remains.of(world.ground, world.home)
    turn = 0
    while not tally.over:
        turn += 1
        with world.serve() as server:
            async with world.client(server) as api:
                await until(lambda: _ready(world, api), 120)
                await _one_life(world, server, api, tally, chance, calm=turn % CALM == 0)
    await _empty_life(world)
    left = Remains.of(world.ground, world.home).beyond(before)
    assert not left, left
    for each in tally.ballast:
        each.require_flat()


async def _empty_life(world: World) -> None:
    """Have a server give everything up, and end."""
    with world.serve() as server:
        async with world.client(server) as api:
            await until(lambda: _ready(world, api), 600)
            while sandboxes := (await estate.asked(api, "GET", "/v1/sandboxes?limit=1000", 200))[
                "sandboxes"
            ]:
                for each in sandboxes:
                    await api.call("DELETE", f"/v1/sandboxes/{each['id']}")
            await estate.asked(api, "DELETE", f"/v1/templates/{world.template['name']}", 204)
        assert server.stop(signal.SIGTERM) == 0


async def _one_life(
    world: World, server: Server, api: Api, tally: Tally, chance: random.Random, *, calm: bool
) -> None:
    """Ask one server for much, and end it."""
    end = tally.end if calm else min(time.monotonic() + chance.uniform(*LIFE_SECONDS), tally.end)
    before, ballast = tally.done["created"], Ballast()
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(_go_on(world, api, tally, chance)) for _ in range(CLIENTS)]
        while time.monotonic() < end and not tally.over:
            await asyncio.sleep(1.0)  # the moment is what is tried
            made = tally.done["created"] - before
            ballast.weigh(server.process.pid, made)
            if calm and made >= CALM_CREATES:
                break
        number = signal.SIGTERM if calm else signal.SIGKILL
        code = await asyncio.to_thread(server.stop, number)
        assert code == (0 if calm else -signal.SIGKILL), code
        for each in clients:
            each.cancel()
    tally.done["servers left alone" if calm else "servers killed"] += 1
    if calm:
        tally.ballast.append(ballast)


async def _go_on(world: World, api: Api, tally: Tally, chance: random.Random) -> None:
    """Make and kill, one sandbox after the other, until the server is gone."""
    with contextlib.suppress(aiohttp.ClientError):
        while not tally.over:
            await _one_sandbox(world, api, tally, chance)


async def _one_sandbox(world: World, api: Api, tally: Tally, chance: random.Random) -> None:
    made = await _asked(api, "POST", "/v1/sandboxes", tally, chance, json=world.wanted)
    if made is None:
        return
    tally.done["created"] += 1
    id = made["id"]
    if chance.random() < EXECUTES:
        argv = {"argv": ["/bin/sh", "-c", "echo $$; sleep 0.1"]}
        await _asked(api, "POST", f"/v1/sandboxes/{id}/exec", tally, chance, json=argv)
    if chance.random() < KILLED:
        tally.done["hypervisors killed"] += _kill_hypervisor(world, id)
    await _asked(api, "DELETE", f"/v1/sandboxes/{id}", tally, chance)


async def _asked(
    api: Api, method: str, path: str, tally: Tally, chance: random.Random, **request: Any
) -> dict[str, Any] | None:
    """Return an answer that is good; `None` when the client has left, or was refused in words."""
    leaves = chance.uniform(0.0, 0.3) if chance.random() < LEAVES else None
    try:
        async with asyncio.timeout(leaves):
            async with api.session.request(method, path, **request) as response:
                status, answer = response.status, (await response.read()).partition(b"\n")[0]
    except TimeoutError:
        tally.done["clients left"] += 1
        return None
    said = json.loads(answer or b"{}")
    if status >= 400 and said["code"] not in LEAVING:
        tally.done[f"answered {said['code']}"] += 1
    return dict(said) if status == 201 else None


def _kill_hypervisor(world: World, id: str) -> int:
    """Kill the machine of a sandbox behind the server's back; return how many were killed."""
    clone = "".join(estate.rows(world.ground, f"SELECT clone_id FROM sandboxes WHERE id = '{id}'"))
    found = record.read(world.ground.state / "run/clones" / clone)
    if not clone or found is None:
        return 0
    with contextlib.suppress(ProcessLookupError):
        os.kill(found.pid, signal.SIGKILL)
        return 1
    return 0


async def _ready(world: World, api: Api) -> bool:
    name = world.template["name"]
    status, template = await api.call("GET", f"/v1/templates/{name}")
    if status == 404:
        await estate.asked(api, "POST", "/v1/templates", 201, **world.template)
        return True
    return bool(template["state"] == "ready")


def main() -> None:
    """Churn, say how it went, and add it to the log."""
    parser = argparse.ArgumentParser(prog="python -m tests.churn")
    parser.add_argument("--creates", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--engine", choices=("fake", "qemu"), default="fake")
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    seclusion.seclude()
    os.environ[leftovers.MARK_NAME] = leftovers.MARK
    known = given.log.read_text().splitlines() if given.log and given.log.exists() else []
    entries = [each for each in map(json.loads, known) if each["engine"] == given.engine]
    before: Counter[str] = Counter()
    for entry in entries:
        before += Counter(entry["done"]) if entry["clean"] else Counter()
    tally = Tally(goal=given.creates - before["created"], end=time.monotonic() + given.seconds)
    began, clean = time.monotonic(), False
    try:
        with fake_world() if given.engine == "fake" else qemu_world() as world:
            asyncio.run(churn(world, tally, random.Random(f"{given.seed}-{len(entries)}")))
        clean = True
    finally:
        entry = {
            "clean": clean,
            "engine": given.engine,
            "done": dict(tally.done),
            "seconds": round(time.monotonic() - began),
            "a_second": round(tally.done["created"] / (time.monotonic() - began), 1),
            "load": [round(each, 1) for each in os.getloadavg()],
            "mib_after_thousands": [each.by_thousands() for each in tally.ballast],
        }
        if given.log:
            with given.log.open("a") as log:
                log.write(json.dumps(entry) + "\n")
        print(f"{json.dumps(entry)}; all: {dict(before + tally.done)}")


if __name__ == "__main__":
    main()
