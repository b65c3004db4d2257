"""A clone that is halted stays as it was saved; one that is branched leaves only children."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests import stepping
from tests.fakes import Faults
from tests.processes import stopped
from tests.unit import test_checkpoint
from tests.unit.test_checkpoint import FAILED, Bench
from vmpool import checkpoint
from vmpool import snapshot as snapshots
from vmpool.errors import ConflictError, DiskFullError, EngineError, VmpoolError
from vmpool.snapshot import Snapshot

bench = test_checkpoint.bench

FAULTS = pytest.mark.parametrize(
    ("faults", "error"),
    [
        (Faults(pause=FAILED), EngineError),
        (Faults(take=FAILED), EngineError),
        (Faults(write=DiskFullError("as the test wants it")), DiskFullError),
    ],
    ids=["pause", "take", "write"],
)


async def halted(bench: Bench, id: str = "one") -> checkpoint.Saved:
    return await checkpoint.halt(bench.parent, bench.base, id=id, snapshots=bench.kept)


def is_stopped(bench: Bench) -> bool:
    stat = Path(f"/proc/{bench.parent.machine.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "T"


async def test_a_halted_clone_does_nothing_more_and_its_state_goes_on(bench: Bench) -> None:
    saved = await halted(bench)
    await stopped(bench.parent.machine.pid)
    assert snapshots.load(saved.snapshot.directory) == saved.snapshot
    child = await bench.descend(saved.snapshot)
    assert await bench.answers(child)
    await child.kill()
    await bench.parent.machine.resume()
    assert await bench.answers(bench.parent)


@FAULTS
async def test_a_clone_that_cannot_be_halted_runs_on_and_nothing_is_kept(
    bench: Bench, faults: Faults, error: type[VmpoolError]
) -> None:
    machine = bench.parent.machine
    machine._faults = faults  # type: ignore[attr-defined]
    with pytest.raises(error):
        await halted(bench)
    machine._faults = Faults()  # type: ignore[attr-defined]
    assert not is_stopped(bench)
    assert not list(bench.kept.iterdir())
    assert await bench.answers(bench.parent)


async def test_a_clone_that_is_halted_under_a_name_that_is_taken_runs_on(bench: Bench) -> None:
    await bench.save()
    with pytest.raises(ConflictError):
        await halted(bench)
    assert await bench.answers(bench.parent)


async def test_a_halt_cancelled_at_any_step_leaves_the_clone_running(bench: Bench) -> None:
    places, saved = await stepping.places(halted(bench))
    saved.snapshot.remove()
    await bench.parent.machine.resume()
    before = asyncio.all_tasks()
    for place in places:
        saved = await stepping.cancel_at(place, halted(bench))
        if saved is not None:
            saved.snapshot.remove()
            await bench.parent.machine.resume()
        assert not list(bench.kept.iterdir()), place
        assert asyncio.all_tasks() == before, place
        assert await bench.answers(bench.parent), place


async def test_children_are_loaded_from_a_branch_that_then_is_gone(bench: Bench) -> None:
    async with checkpoint.branch(bench.parent, bench.base, at=bench.kept) as state:
        assert state.manifest.base == bench.base.as_base
        assert await bench.answers(bench.parent)
        children = await asyncio.gather(*(bench.descend(state) for _ in range(3)))
    assert not list(bench.kept.iterdir())
    for child in children:
        assert await bench.answers(child)
        await child.kill()


@FAULTS
async def test_a_clone_that_cannot_be_branched_runs_on(
    bench: Bench, faults: Faults, error: type[VmpoolError]
) -> None:
    machine = bench.parent.machine
    machine._faults = faults  # type: ignore[attr-defined]
    with pytest.raises(error):
        async with checkpoint.branch(bench.parent, bench.base, at=bench.kept):
            pytest.fail("entered")
    machine._faults = Faults()  # type: ignore[attr-defined]
    assert not list(bench.kept.iterdir())
    assert await bench.answers(bench.parent)


async def test_a_branch_cancelled_at_any_step_leaves_nothing(bench: Bench) -> None:
    async def branched() -> Snapshot:
        async with checkpoint.branch(bench.parent, bench.base, at=bench.kept) as state:
            await asyncio.sleep(0)
        return state

    places, _ = await stepping.places(branched())
    before = asyncio.all_tasks()
    for place in places:
        await stepping.cancel_at(place, branched())
        assert not list(bench.kept.iterdir()), place
        assert asyncio.all_tasks() == before, place
        assert await bench.answers(bench.parent), place


async def test_what_fails_within_a_branch_is_raised_and_the_branch_is_gone(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError):
        async with checkpoint.branch(bench.parent, bench.base, at=bench.kept):
            raise ZeroDivisionError
    assert not list(bench.kept.iterdir())
