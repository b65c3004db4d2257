"""A real guest is saved while it runs, and its children live on from there."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.serving import Api, until
from tests.tcg.conftest import TEMPLATE, UpServer
from vmpool import checkpoint, clone, snapshot
from vmpool.clone import Clone, RestoreDeadlines
from vmpool.engine.qemu import QemuEngine
from vmpool.model import MIB, Code, Command, Exited, Identity, Output, Waking
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
import hashlib, json, os, random, time, uuid
print(json.dumps({
    "n": int(open("/dev/shm/n").read() or 0),
    "ballast": hashlib.sha256(open("/home/user/ballast", "rb").read()).hexdigest(),
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

    async def child(self, of: Clone, state: Snapshot) -> Clone:
        waiting = await clone.stand_by(self.engine, self.template, run=self.run)
        return await clone.descend(
            waiting,
            state,
            key=of.key,
            identity=Identity.fresh(waiting.id),
            policy=Waking(),
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
