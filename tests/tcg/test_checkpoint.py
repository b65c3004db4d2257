"""A real guest is saved while it runs, and its children live on from there."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Api, until
from tests.tcg.conftest import TEMPLATE, UpServer
from vmpool import checkpoint, clone, snapshot
from vmpool.agent.contexts import Cell, ContextSpec
from vmpool.clone import Clone, RestoreDeadlines
from vmpool.engine.qemu import QemuEngine
from vmpool.model import (
    MIB,
    ClockPolicy,
    Code,
    Command,
    Exited,
    Identity,
    Output,
    Preserve,
    Rng,
    Seed,
    Unique,
    Waking,
)
from vmpool.snapshot import Snapshot

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host, pytest.mark.timeout(300)]

DEADLINES = RestoreDeadlines(hello=60.0, identify=60.0, warm=60.0, activate=60.0)
BALLAST_BYTES = 16 * MIB

PREPARE = f"""
import os, subprocess
counting = "n=0; while :; do n=$((n+1)); echo $n > /dev/shm/n; sleep 0.05; done"
apart = dict(stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
child = subprocess.Popen(["/bin/sh", "-c", counting], start_new_session=True, **apart)
with open("/home/user/ballast", "wb") as file:
    file.write(os.urandom({BALLAST_BYTES}))
print(child.pid)
"""
PROBE = """
import hashlib, json, os, pathlib, random, time, uuid
def read(path):
    return pathlib.Path(path).read_bytes() if os.path.exists(path) else b""
print(json.dumps({
    "n": int(read("/dev/shm/n") or 0),
    "ballast": hashlib.sha256(read("/home/user/ballast")).hexdigest(),
    "marks": sorted(name for name in os.listdir("/home/user") if name.startswith("mark")),
    "distinct": {
        "hostname": os.uname().nodename,
        "machine_id": open("/etc/machine-id").read(),
        "boot_id": open("/proc/sys/kernel/random/boot_id").read(),
        "urandom": os.urandom(16).hex(),
        "uuid": str(uuid.uuid4()),
        "random": random.getrandbits(128),
    },
    "clock": time.time(),
}))
"""


@dataclass
class Bench:
    """What clones are restored with, past the server, from its template."""

    engine: QemuEngine
    template: Snapshot
    run: Path
    kept: Path

    async def restored(self) -> Clone:
        made = await clone.restore(self.engine, self.template, run=self.run, deadlines=DEADLINES)
        await made.activate()
        return made

    async def saved(self, of: Clone) -> checkpoint.Saved:
        return await checkpoint.save(
            of, self.template, id=secrets.token_hex(8), snapshots=self.kept
        )

    async def child(self, of: Clone, state: Snapshot, policy: Waking | None = None) -> Clone:
        waiting = await clone.stand_by(self.engine, self.template, run=self.run)
        return await clone.descend(
            waiting,
            state,
            key=of.key,
            identity=Identity.fresh(waiting.id),
            policy=policy or Waking(),
            deadlines=DEADLINES,
        )


@pytest.fixture
async def bench(server: UpServer, api: Api) -> AsyncIterator[Bench]:
    state = server.ground.state
    run, kept = state / "c", state / "kept"  # beside the snapshots: roots are relative
    run.mkdir()
    kept.mkdir()
    _, status = await api.call("GET", f"/v1/templates/{TEMPLATE}")
    template = snapshot.load(state / "snapshots" / status["snapshot"])
    engine = await QemuEngine.detect()
    yield Bench(engine, template, run, kept)
    engine.close()
    assert not list(run.iterdir())
    run.rmdir()
    for path in kept.iterdir():
        snapshot.discard(path)
    kept.rmdir()


async def ask(of: Clone, what: Code | Command) -> str:
    async with of.agent.execute(what) as execution:
        events = [event async for event in execution]
    assert events[-1] == Exited(exit_code=0), events
    return b"".join(event.data for event in events if isinstance(event, Output)).decode()


async def probe(of: Clone) -> dict[str, Any]:
    return dict(json.loads(await ask(of, Code(source=PROBE))))


async def counts_on(of: Clone) -> None:
    before = (await probe(of))["n"]

    async def further() -> bool:
        return bool((await probe(of))["n"] > before)

    await until(further)


async def test_children_go_on_where_their_parent_was_as_somebody_else(bench: Bench) -> None:
    parent = await bench.restored()
    pid = (await ask(parent, Code(source=PREPARE))).strip()
    saved = await bench.saved(parent)
    assert saved.dirty_bytes > BALLAST_BYTES
    stored = sum(file.size_bytes for file in saved.snapshot.manifest.files.values())
    assert stored < 1.1 * saved.dirty_bytes
    await ask(parent, Command(argv=("/bin/touch", "mark-of-the-parent")))

    family = [parent]
    for _ in range(2):
        family.append(await bench.child(parent, saved.snapshot))
    for child in family[1:]:
        await counts_on(child)  # the parent's background process, in the child
        await ask(child, Command(argv=("/bin/kill", "-0", pid)))
    await ask(family[1], Command(argv=("/bin/touch", "mark-of-the-child")))
    family.append(await bench.child(parent, (await bench.saved(family[1])).snapshot))

    found = [await probe(one) for one in family]
    assert [each["marks"] for each in found] == [
        ["mark-of-the-parent"],
        ["mark-of-the-child"],
        [],
        ["mark-of-the-child"],
    ]
    assert len({each["ballast"] for each in found}) == 1
    for source in found[0]["distinct"]:
        values = {each["distinct"][source] for each in found}
        assert len(values) == len(family), source
    for one, each in zip(family, found, strict=True):
        assert one.receipt.hostname == one.id == each["distinct"]["hostname"]
    for one in family:
        await counts_on(one)
        await one.kill()
    bench.template.verify()
    saved.snapshot.verify()


MAKE = """
import json, os, random, time, numpy
random.seed(1)
mine, theirs = random.Random(2), numpy.random.default_rng(3)
"""
DRAW = """
import json, os, random, time, numpy
print(json.dumps({
    "ruled": {
        "random": random.getrandbits(128),
        "numpy": numpy.random.bytes(16).hex(),
    },
    "seeded": {"default": int(numpy.random.default_rng().integers(2**62))},
    "kernel": {"urandom": os.urandom(16).hex(), "secret": random.SystemRandom().random()},
    "clock": time.time(),
}))
"""
DRAW_MORE = DRAW.replace(
    '"ruled": {', '"ruled": {"mine": mine.random(), "theirs": int(theirs.integers(2**62)),'
)
PROGRAM = 'import random; print(hash("vmpool"), random.random())'
HOUR = 3600


async def in_context(of: Clone, id: str, source: str) -> str:
    async with of.agent.contexts.run(Cell(context=id, source=source), outer={}) as execution:
        events = [event async for event in execution]
    assert events[-1] == Exited(exit_code=0), events
    return b"".join(event.data for event in events if isinstance(event, Output)).decode()


async def test_children_draw_and_tell_the_time_as_they_were_told(bench: Bench) -> None:
    parent = await bench.restored()
    context = (await parent.agent.contexts.create(ContextSpec(), outer={})).id
    await in_context(parent, context, MAKE)
    saved = await bench.saved(parent)
    await parent.kill()
    saved_ns = time.time_ns() - HOUR * 10**9

    async def drawn(rng: Rng, clock: ClockPolicy) -> dict[str, Any]:
        waking = Waking(rng=rng, clock=clock, saved_ns=saved_ns)
        child = await bench.child(parent, saved.snapshot, waking)
        found = {
            "context": json.loads(await in_context(child, context, DRAW_MORE)),
            "run": json.loads(await ask(child, Code(source=DRAW))),
            "program": await ask(child, Command(argv=("python3", "-c", PROGRAM))),
        }
        # From then on it goes on, however long four children take here.
        frozen = -1 < found["run"]["clock"] - saved_ns / 1e9 < HOUR / 2
        assert frozen is (clock is ClockPolicy.FROZEN)
        await child.kill()
        return found

    now, frozen = ClockPolicy
    unique = [await drawn(Unique(), now) for _ in range(2)]
    seeded = [await drawn(Seed(7), frozen) for _ in range(2)]
    preserved = [await drawn(Preserve(), now) for _ in range(2)]
    for where in ("context", "run"):
        for kind, twins_share in (("ruled", (False, True, True)), ("seeded", (False, True, False))):
            for what in seeded[0][where][kind]:
                shared = tuple(
                    len({each[where][kind][what] for each in pair}) == 1
                    for pair in (unique, seeded, preserved)
                )
                assert shared == twins_share, (where, what)
        for what in seeded[0][where]["kernel"]:
            values = {each[where]["kernel"][what] for each in unique + seeded + preserved}
            assert len(values) == 6, (where, what)
    assert unique[0]["program"] != unique[1]["program"]
    assert seeded[0]["program"] == seeded[1]["program"]
    assert seeded[0]["program"].split()[1] == repr(random.Random(7).random())
    assert preserved[0]["context"]["ruled"]["mine"] == random.Random(2).random()


async def test_a_clone_whose_manager_was_killed_is_found_again(bench: Bench) -> None:
    manager = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.left_clone", bench.template.directory, bench.run),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
    )
    assert manager.stdout is not None
    id, kept, passing = (await manager.stdout.readline()).decode().split()
    manager.kill()
    await manager.wait()

    adopted = await clone.adopt(
        bench.engine, bench.template, directory=bench.run / id, deadlines=DEADLINES
    )
    assert adopted.id == id
    seen = await probe(adopted)
    assert seen["distinct"]["hostname"] == adopted.receipt.hostname == id
    assert seen["distinct"]["boot_id"].strip() == adopted.receipt.boot_id
    assert abs(seen["clock"] - time.time()) < 5
    (process,) = await adopted.agent.processes.list()
    assert (process.pid, process.tag, process.ended) == (int(kept), "counts", None)
    async with adopted.agent.processes.attach(int(kept)) as attachment:
        heard = [await anext(attachment) for _ in range(3)]
    assert isinstance(heard[-1], Output)
    gone = Command(argv=("/bin/sh", "-c", f"! kill -0 {passing} 2> /dev/null"))
    await ask(adopted, gone)
    child = await bench.child(adopted, (await bench.saved(adopted)).snapshot)
    assert [each.pid for each in await child.agent.processes.list()] == [int(kept)]
    await child.kill()
    await adopted.kill()
