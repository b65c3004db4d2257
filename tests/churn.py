"""Churn: sandboxes made and killed by the thousand, of a server that nothing spares.

    python -m tests.churn --creates 10000 --seconds 3600 [--log FILE]

Clients leave in the middle of their requests, hypervisors are killed, and the server with them. At
the end nothing may be left: no process, directory, row, namespace, rule or control group. A run is
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
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests import estate, leftovers
from tests.serving import Api, Server, client, until
from tests.soak import LEAVING, World
from tests.worlds import fake_world

CLIENTS = 4
LIFE_SECONDS = (5.0, 40.0)
"""For how long a server serves before it is killed."""

CALM = 4
"""One server of so many is left alone longer: its memory is watched."""

GROWTH_BYTES = 8 << 20
"""What a server may take more for a thousand sandboxes, once it has served some."""

LEAVES, KILLED, EXECUTES = 0.1, 0.05, 0.3
"""How often a client leaves a request, a hypervisor is killed, something is executed."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was done.

    Attributes:
        memory: Of each server that was left alone: sandboxes made so far, and its resident bytes.
    """

    goal: int
    end: float
    done: Counter[str] = field(default_factory=Counter)
    memory: list[list[tuple[int, int]]] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether enough was made, or time is up."""
        return self.done["created"] >= self.goal or time.monotonic() > self.end


async def churn(world: World, tally: Tally, chance: random.Random) -> None:
    """Make and kill until it is over, then require that nothing is left.

    Raises:
        AssertionError: Something is left, or a server's memory grows.
    """
    before = leftovers.Census.take()
    for turn in range(sys.maxsize):
        with world.serve() as server:
            async with client(server) as api:
                await until(lambda: _ready(world, api))
                await _one_life(world, server, api, tally, chance, calm=turn % CALM == 0)
        if tally.over:
            break
    with world.serve() as server:
        async with client(server) as api:
            await _emptied(world, api)
        assert server.stop(signal.SIGTERM) == 0
    _require_nothing(world, before)
    for life in tally.memory:
        assert _growth_bytes(life) < GROWTH_BYTES, life


async def _one_life(
    world: World, server: Server, api: Api, tally: Tally, chance: random.Random, *, calm: bool
) -> None:
    """Ask one server for much, and end it."""
    seconds = LIFE_SECONDS[1] * 4 if calm else chance.uniform(*LIFE_SECONDS)
    seconds = min(seconds, max(1.0, tally.end - time.monotonic()))
    made, life = tally.done["created"], []
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(_go_on(world, api, tally, chance)) for _ in range(CLIENTS)]
        end = time.monotonic() + seconds
        while time.monotonic() < end and not tally.over:
            await asyncio.sleep(min(1.0, seconds))  # the moment is what is tried
            life.append((tally.done["created"] - made, _resident_bytes(server.process.pid)))
        number = signal.SIGTERM if calm else signal.SIGKILL
        code = await asyncio.to_thread(server.stop, number)
        assert code == (0 if calm else -signal.SIGKILL), code
        for each in clients:
            each.cancel()
    tally.done["servers ended"] += 1
    if calm:
        tally.memory.append(life)


async def _go_on(world: World, api: Api, tally: Tally, chance: random.Random) -> None:
    """Make and kill, one sandbox after the other, until the server is gone."""
    with contextlib.suppress(aiohttp.ClientError):
        while not tally.over:
            await _one_sandbox(world, api, tally, chance)


async def _one_sandbox(world: World, api: Api, tally: Tally, chance: random.Random) -> None:
    body = {"template": world.template["name"], "timeout": 600}
    made = await _asked(api, "POST", "/v1/sandboxes", tally, chance, json=body)
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
    if status >= 500 and said["code"] not in LEAVING:
        tally.done[f"answered {said['code']}"] += 1
    return dict(said) if status == 201 else None


def _kill_hypervisor(world: World, id: str) -> int:
    """Kill the machine of a sandbox behind the server's back; return how many were killed."""
    rows = estate.rows(world.ground, f"SELECT clone_id FROM sandboxes WHERE id = '{id}'")
    for pid in _processes_of(world.ground.state / "run/clones" / "".join(rows)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            return 1
    return 0


def _processes_of(directory: Path) -> list[int]:
    """Return the processes whose command line names what is in a directory."""
    found, wanted = [], os.fsencode(directory)
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):
                if wanted in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
    return found


async def _ready(world: World, api: Api) -> bool:
    name = world.template["name"]
    status, template = await api.call("GET", f"/v1/templates/{name}")
    if status == 404:
        await estate.asked(api, "POST", "/v1/templates", 201, **world.template)
        return True
    return bool(template["state"] == "ready")


async def _emptied(world: World, api: Api) -> None:
    """Have the last server give everything up."""
    await until(lambda: _ready(world, api))
    while sandboxes := (await estate.asked(api, "GET", "/v1/sandboxes?limit=1000", 200)).get(
        "sandboxes"
    ):
        for each in sandboxes:
            await api.call("DELETE", f"/v1/sandboxes/{each['id']}")
    await estate.asked(api, "DELETE", f"/v1/templates/{world.template['name']}", 204)


def _require_nothing(world: World, before: leftovers.Census) -> None:
    """Fail when anything on this host is left of a server and what it made."""
    ground = world.ground
    open_rows = estate.rows(ground, "SELECT id FROM sandboxes WHERE ended_ns IS NULL")
    left = {
        "processes": _processes_of(ground.state),
        "machines": ground.clones,
        "snapshots": list((ground.state / "snapshots").iterdir()),
        "checkpoints": list((ground.state / "checkpoints").iterdir()),
        "rows": open_rows,
        "groups": _groups_of(ground.state),
        "strays": [each for each in leftovers.since(before) if each.startswith("process")],
    }
    assert not any(left.values()), {name: what for name, what in left.items() if what}


def _groups_of(state: Path) -> list[str]:
    """Return the control groups, and the rules of the firewall, that carry a state's name."""
    name = state.name
    return [path for path in map(str, Path("/sys/fs/cgroup").glob("*/vmpool*/*")) if name in path]


def _resident_bytes(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/statm").read_text()
    except FileNotFoundError:
        return 0
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _growth_bytes(life: list[tuple[int, int]]) -> float:
    """Return what a server took more for each thousand sandboxes, by its second and last quarter.

    Of a short life nothing can be told.
    """
    seen = [each for each in life if each[1]]
    quarter = len(seen) // 4
    if quarter < 5 or seen[-1][0] < 200:
        return 0.0
    early, late = seen[quarter : 2 * quarter], seen[-quarter:]
    made = statistics.mean(each[0] for each in late) - statistics.mean(each[0] for each in early)
    more = statistics.median(each[1] for each in late) - statistics.median(
        each[1] for each in early
    )
    return more / max(made, 1) * 1000


def main() -> None:
    """Churn over the fake engine, say how it went, and add it to the log."""
    parser = argparse.ArgumentParser(prog="python -m tests.churn")
    parser.add_argument("--creates", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--log", type=Path)
    given = parser.parse_args()
    known = given.log.read_text().splitlines() if given.log and given.log.exists() else []
    entries = [json.loads(line) for line in known]
    before: Counter[str] = Counter()
    for entry in entries:
        before += Counter(entry["done"]) if entry["clean"] else Counter()
    tally = Tally(goal=given.creates - before["created"], end=time.monotonic() + given.seconds)
    began, clean = time.monotonic(), False
    try:
        with fake_world() as world:
            asyncio.run(churn(world, tally, random.Random(f"{given.seed}-{len(entries)}")))
        clean = True
    finally:
        seconds = time.monotonic() - began
        entry = {
            "clean": clean,
            "done": dict(tally.done),
            "seconds": round(seconds),
            "growth_mib_per_1000": [round(_growth_bytes(e) / (1 << 20), 2) for e in tally.memory],
        }
        if given.log:
            with given.log.open("a") as log:
                log.write(json.dumps(entry) + "\n")
        total = before + tally.done
        print(f"{json.dumps(entry)}; {tally.done['created'] / seconds:.1f}/s; all: {dict(total)}")


if __name__ == "__main__":
    main()
