"""Machines are held to what they may use by control groups of version 2, which the host has."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kvm.conftest import Stock
from tests.stand_ins import PYTHON, isolated
from vmpool.engine import qemu
from vmpool.engine.qemu import detection, process
from vmpool.engine.qemu.jail import cgroup
from vmpool.engine.qemu.jail.limits import SMALL, Limits
from vmpool.engine.qemu.jail.wall import Wall
from vmpool.errors import HostError
from vmpool.model import MIB, Attachment

pytestmark = pytest.mark.kvm

GREEDY = """
taken = []
while True:
    taken.append(b"x" * (1 << 20))
"""


@pytest.fixture(autouse=True)
def _unified() -> None:
    try:
        cgroup.survey()
    except HostError as err:
        pytest.skip(err.message)


def group_of(pid: int) -> Path:
    """Return the group of a process, where the kernel shows it."""
    (line,) = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return Path("/sys/fs/cgroup") / line.removeprefix("0::/")


def limit(group: Path, name: str) -> str:
    return (group / name).read_text().strip()


async def test_a_clone_has_a_group_with_limits_and_both_go_together(stock: Stock) -> None:
    assert Wall.CGROUP in stock.engine.isolation.walls
    most = Limits.of(stock.base.spec)
    async with stock.clones() as (clone,):
        group = group_of(clone.machine.pid)
        assert group.name == clone.id
        assert int(limit(group, "memory.max")) == most.memory_bytes
        assert int(limit(group, "memory.swap.max")) == 0
        assert int(limit(group, "pids.max")) == most.tasks
        assert limit(group, "memory.oom.group") == "1"
        assert limit(group, "cpu.max").split()[0] == str(most.cpus * 100_000)
        assert 0 < int(limit(group, "memory.current")) < most.memory_bytes
    assert not group.exists()


async def test_a_group_is_removed_with_the_machine_that_a_dead_manager_left(stock: Stock) -> None:
    at = Attachment(directory=stock.run / "left")
    at.directory.mkdir()
    shell = await stock.engine.prepare(stock.base, at)
    group = group_of(shell.pid)
    assert group.name == "left"
    assert await qemu.reap(at.directory)
    assert not group.exists()
    await shell.kill()
    for file in at.directory.iterdir():
        file.unlink()
    at.directory.rmdir()


async def test_who_takes_more_memory_than_the_machine_may_ends_and_nobody_else_does(
    tmp_path: Path,
) -> None:
    walled = await asyncio.to_thread(lambda: detection.limited(isolated()))
    most = replace(SMALL, memory_bytes=64 * MIB)
    with tempfile.TemporaryFile() as log, walled.for_one(most) as jail:
        group = jail.group(tmp_path)
        assert group is not None
        await asyncio.to_thread(group.make, most)
        greedy = await process.spawn((PYTHON, "-c", GREEDY), slots={}, log=log.fileno(), jail=jail)
        await asyncio.to_thread(group.add, greedy.pid)
    async with asyncio.timeout(120):
        assert await greedy.wait() == -signal.SIGKILL
    killed = limit(group.path, "memory.events")
    await asyncio.to_thread(group.remove)
    assert "oom_kill 1" in killed
    assert not group.path.exists()
    assert cgroup.of_machine(tmp_path) is None
