"""A child and an adopted clone over vhost-vsock, where connections outlive those who opened them.

A child's agent has its parent's connection open when it wakes, under a context id that is not its
own any more; an adopted clone's has that of a manager that is gone.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from tests.kvm.conftest import DEADLINES, Stock
from tests.kvm.test_clones import cid_of, output
from vmpool import checkpoint, clone, snapshot
from vmpool.model import Command, Identity, Waking

pytestmark = [pytest.mark.kvm, pytest.mark.shares_host, pytest.mark.timeout(600)]

WHO = Command(argv=("cat", "/proc/sys/kernel/hostname", "/proc/sys/kernel/random/boot_id"))


async def test_a_child_goes_on_beside_its_parent_under_a_cid_of_its_own(stock: Stock) -> None:
    kept = stock.base.directory.parents[1] / "kept"  # beside the snapshots: roots are relative
    kept.mkdir()
    async with stock.clones() as (parent,):
        pid = await parent.agent.processes.start(Command(argv=("sleep", "3600")), tag="kept")
        saved = await checkpoint.save(parent, stock.base, id="one", snapshots=kept)
        waiting = await clone.stand_by(stock.engine, stock.base, run=stock.run)
        child = await clone.descend(
            waiting,
            saved.snapshot,
            key=parent.key,
            identity=Identity.fresh(waiting.id),
            policy=Waking(),
            deadlines=DEADLINES,
        )
        try:
            assert cid_of(child) != cid_of(parent)
            for one in (parent, child):
                told = (await output(one, WHO)).split()
                assert told == [one.id, one.receipt.boot_id]
                assert [each.pid for each in await one.agent.processes.list()] == [pid]
        finally:
            await child.kill()
    snapshot.discard(saved.snapshot.directory)
    kept.rmdir()


async def test_a_clone_whose_manager_was_killed_is_found_again(stock: Stock) -> None:
    manager = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.left_clone", stock.base.directory, stock.run),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
    )
    assert manager.stdout is not None
    id, kept, passing = (await manager.stdout.readline()).decode().split()
    manager.kill()
    await manager.wait()
    adopted = await clone.adopt(
        stock.engine, stock.base, directory=stock.run / id, deadlines=DEADLINES
    )
    try:
        assert (await output(adopted, WHO)).split() == [id, adopted.receipt.boot_id]
        (process,) = await adopted.agent.processes.list()
        assert (process.pid, process.tag, process.ended) == (int(kept), "counts", None)
        gone = Command(argv=("sh", "-c", f"! kill -0 {passing} 2> /dev/null"))
        await output(adopted, gone)
    finally:
        await adopted.kill()
