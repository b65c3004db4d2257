"""Machines are held to what they may use by control groups of version 2, which the host has."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests import tiny_guest, tiny_template
from tests.stand_ins import PYTHON, isolated
from vmpool.engine import qemu
from vmpool.engine.qemu import QemuEngine, detection, process
from vmpool.engine.qemu.jail import cgroup
from vmpool.engine.qemu.jail.limits import SMALL, Limits
from vmpool.engine.qemu.jail.wall import Wall
from vmpool.errors import HostError
from vmpool.model import MIB, Accelerator, MachineSpec, Transport
from vmpool.snapshot import Snapshot

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


@dataclass(frozen=True)
class Bench:
    """A template of a guest of a few instructions, and what starts clones of it."""

    engine: QemuEngine
    template: Snapshot
    run: Path


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    engine = await QemuEngine.detect()
    run = Path(f"/tmp/vmpool-{secrets.token_hex(4)}")
    run.mkdir(mode=0o711)
    root = run / "root"
    root.write_bytes(bytes(4096))
    spec = MachineSpec(
        root=root,
        memory_bytes=32 * MIB,
        accelerator=Accelerator.KVM,
        transport=Transport.VSOCK,
        cpu_model="host",
        qemu_version=engine.version,
    )
    template = await tiny_template.make(engine, spec, tiny_guest.WITNESS, run=run, snapshots=run)
    yield Bench(engine, template, run)
    engine.close()
    shutil.rmtree(run)


async def test_a_machine_has_a_group_with_limits_and_both_go_together(bench: Bench) -> None:
    assert Wall.CGROUP in bench.engine.isolation.walls
    most = Limits.of(bench.template.spec)
    with tiny_template.attachment(bench.run) as at:
        shell = await bench.engine.prepare(bench.template, at)
        group = group_of(shell.pid)
        assert group.name == at.directory.name
        assert int(limit(group, "memory.max")) == most.memory_bytes
        assert int(limit(group, "memory.swap.max")) == 0
        assert int(limit(group, "pids.max")) == most.tasks
        assert limit(group, "memory.oom.group") == "1"
        assert limit(group, "cpu.max").split()[0] == str(most.cpus * 100_000)
        clone = await shell.load(bench.template)
        assert 0 < int(limit(group, "memory.current")) < most.memory_bytes
        await clone.kill()
        assert not group.exists()


async def test_a_group_is_removed_with_the_machine_that_a_dead_manager_left(bench: Bench) -> None:
    with tiny_template.attachment(bench.run) as at:
        shell = await bench.engine.prepare(bench.template, at)
        group = group_of(shell.pid)
        assert group.name == at.directory.name
        assert await qemu.reap(at.directory)
        assert not group.exists()
        await shell.kill()


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
    assert "oom_group_kill 1" in killed
    assert not group.path.exists()
    assert cgroup.of_machine(tmp_path) is None
