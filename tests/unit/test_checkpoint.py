"""A running clone is saved and runs on; its children go on where it was, as somebody else."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import stepping
from tests.fakes import FakeEngine, Faults
from vmpool import checkpoint, clone
from vmpool import snapshot as snapshots
from vmpool.clone import Clone, RestoreDeadlines
from vmpool.errors import ConflictError, DiskFullError, EngineError, GuestError, VmpoolError
from vmpool.model import Code, Exited, Identity, Waking
from vmpool.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.checkpoint import Saved

DEADLINES = RestoreDeadlines(hello=30.0, identify=30.0, warm=30.0, activate=30.0)
FAILED = EngineError("as the test wants it", code="qmp_refused")


@dataclass
class Bench:
    """A running clone, what it was restored from, and places for more."""

    engine: FakeEngine
    base: Snapshot
    clones: Path
    kept: Path
    parent: Clone

    async def save(self, id: str = "one") -> Saved:
        return await checkpoint.save(self.parent, self.base, id=id, snapshots=self.kept)

    async def descend(self, of: Snapshot, key: bytes | None = None) -> Clone:
        waiting = await clone.stand_by(self.engine, self.base, run=self.clones)
        return await clone.descend(
            waiting,
            of,
            key=key or self.parent.key,
            identity=Identity.fresh(waiting.id),
            policy=Waking(),
            deadlines=DEADLINES,
        )

    @property
    def directories(self) -> list[Path]:
        return [path for path in self.clones.iterdir() if path != self.parent.directory]

    async def answers(self, whose: Clone) -> bool:
        async with whose.agent.execute(Code(source="print(6*7)")) as execution:
            return [event async for event in execution][-1] == Exited(exit_code=0)


@pytest.fixture
async def bench(
    base: Snapshot, engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Bench]:
    clones = tmp_path_factory.mktemp("c")
    parent = await clone.restore(engine, base, run=clones, deadlines=DEADLINES)
    await parent.activate()
    await parent.awake()
    kept = base.directory.parents[1] / clones.name  # beside the template's: roots are relative
    kept.mkdir()
    yield Bench(engine, base, clones, kept, parent)
    await parent.kill()
    assert not list(clones.iterdir())


async def test_a_clone_runs_on_and_its_child_is_another(bench: Bench) -> None:
    saved = await bench.save()
    assert saved.snapshot.manifest.base == bench.base.as_base
    assert snapshots.load(saved.snapshot.directory) == saved.snapshot
    assert saved.snapshot.spec.root.exists() == bench.base.spec.root.exists()
    timings = saved.timings
    assert min(timings.prepare_ns, timings.paused_ns, timings.write_ns, timings.publish_ns) > 0
    child = await bench.descend(saved.snapshot)
    assert await bench.answers(bench.parent)
    assert await bench.answers(child)
    assert child.receipt.hostname == child.id != bench.parent.id
    assert child.receipt.boot_id != bench.parent.receipt.boot_id
    assert child.receipt.machine_id != bench.parent.receipt.machine_id
    assert child.key == bench.parent.key  # what its agent remembers
    assert child.timings.warm_ns == child.timings.rest_ns == 0
    await child.kill()


@pytest.mark.parametrize(
    ("faults", "error"),
    [
        (Faults(pause=FAILED), EngineError),
        (Faults(take=FAILED), EngineError),
        (Faults(write=DiskFullError("as the test wants it")), DiskFullError),
    ],
    ids=["pause", "take", "write"],
)
async def test_whatever_fails_the_clone_runs_on_and_nothing_is_kept(
    bench: Bench, faults: Faults, error: type[VmpoolError]
) -> None:
    machine = bench.parent.machine
    machine._faults = faults  # type: ignore[attr-defined]
    with pytest.raises(error):
        await bench.save()
    machine._faults = Faults()  # type: ignore[attr-defined]
    assert not list(bench.kept.iterdir())
    assert await bench.answers(bench.parent)


async def test_a_name_that_is_taken_is_refused_and_the_first_stays(bench: Bench) -> None:
    first = await bench.save()
    with pytest.raises(ConflictError) as caught:
        await bench.save()
    assert caught.value.error_code == "snapshot_exists"
    assert [path.name for path in bench.kept.iterdir()] == ["one"]
    first.snapshot.verify()
    assert await bench.answers(bench.parent)


async def test_a_dead_clone_is_not_saved(bench: Bench) -> None:
    os.kill(bench.parent.machine.pid, signal.SIGKILL)
    await bench.parent.machine.wait()
    with pytest.raises(EngineError) as caught:
        await bench.save()
    assert caught.value.error_code == "qemu_died"
    assert not list(bench.kept.iterdir())


@pytest.mark.parametrize("insistence", stepping.Insistence)
async def test_a_save_cancelled_at_any_step_leaves_the_clone_running_and_nothing_else(
    bench: Bench, insistence: stepping.Insistence
) -> None:
    places, saved = await stepping.places(bench.save())
    saved.snapshot.remove()
    assert len(places) > 3, places
    before = asyncio.all_tasks()
    for place in places:
        saved = await stepping.cancel_at(place, bench.save(), insistence)
        if saved is not None:
            saved.snapshot.remove()
        assert not list(bench.kept.iterdir()), place
        assert asyncio.all_tasks() == before, place
        assert await bench.answers(bench.parent), place


async def test_a_descent_cancelled_at_any_step_leaves_nothing(bench: Bench) -> None:
    saved = await bench.save()
    places, child = await stepping.places(bench.descend(saved.snapshot))
    await child.kill()
    before = asyncio.all_tasks()
    for place in places:
        child = await stepping.cancel_at(place, bench.descend(saved.snapshot))
        if child is not None:
            await child.kill()
        assert not bench.directories, place
        assert asyncio.all_tasks() == before, place


async def test_a_child_that_does_not_take_an_identity_is_killed(bench: Bench) -> None:
    saved = await bench.save()
    bench.engine.faults = Faults(guest=("--lie", "machine-id"))
    with pytest.raises(GuestError) as caught:
        await bench.descend(saved.snapshot)
    assert caught.value.error_code == "identity_unconfirmed"
    assert not bench.directories
