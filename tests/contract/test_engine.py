"""The contract of an engine, held by the fake and by QEMU alike."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from tests import netns
from tests.contract.benches import Bench
from tests.fakes import FakeEngine, Faults
from tests.lost_manager import Point
from vmpool import snapshot
from vmpool.delta import Delta
from vmpool.engine.qemu import QemuEngine, reap
from vmpool.engine.qemu.process import UNKNOWN_EXIT
from vmpool.errors import ConflictError, EngineError, SnapshotError
from vmpool.model import (
    Attachment,
    Nic,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmpool.snapshot import Base, Snapshot


@pytest.fixture
async def networked(bench: Bench) -> Bench:
    """A bench whose machines have a network device."""
    bench.spec = replace(bench.spec, nic=Nic.VIRTIO)
    return bench


@pytest.fixture
def tap() -> Iterator[int]:
    """The descriptor of a link that leads nowhere."""
    with netns.tap() as descriptor:
        yield descriptor


async def test_a_link_is_plugged_in_and_out_and_in_again(networked: Bench, tap: int) -> None:
    template = await networked.template()
    machine = await networked.restored(template, template)
    for _ in range(2):
        await machine.connect(tap)
        await machine.disconnect()
    await machine.disconnect()
    await machine.resume()
    await machine.kill()


async def test_a_second_link_is_refused(networked: Bench, tap: int) -> None:
    template = await networked.template()
    machine = await networked.restored(template, template)
    await machine.connect(tap)
    with pytest.raises(EngineError) as caught:
        await machine.connect(tap)
    assert caught.value.error_code == "qmp_refused"
    await machine.kill()


async def test_a_machine_with_a_link_is_saved_and_restored_without_one(
    networked: Bench, tap: int
) -> None:
    template = await networked.template()
    machine = await networked.restored(template, template)
    await machine.connect(tap)
    await machine.resume()
    kept = await networked.checkpoint(machine, template, "kept")
    await machine.kill()
    again = await networked.restored(template, kept)
    await again.disconnect()
    await again.connect(tap)
    await again.resume()
    await again.kill()


async def test_a_machine_without_a_device_takes_no_link(bench: Bench) -> None:
    machine = await bench.booted()
    with pytest.raises(ConflictError) as caught:
        await machine.connect(0)
    assert caught.value.error_code == "nic_missing"
    assert "network card" in caught.value.message  # what whoever asked for a network is told
    await machine.disconnect()
    await machine.kill()


async def test_a_booted_machine_runs_until_it_is_killed(bench: Bench) -> None:
    machine = await bench.booted()
    os.kill(machine.pid, 0)
    await machine.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(machine.pid, 0)
    assert await machine.wait() == -signal.SIGKILL


async def test_pause_resume_and_kill_are_idempotent(bench: Bench) -> None:
    machine = await bench.booted()
    for verb in (machine.pause, machine.pause, machine.resume, machine.resume):
        await verb()
    for _ in range(2):
        await machine.kill()


async def test_a_crash_ends_every_wait_at_once(bench: Bench) -> None:
    machine = await bench.booted()
    waits = [asyncio.ensure_future(machine.wait()) for _ in range(3)]
    os.kill(machine.pid, signal.SIGKILL)
    async with asyncio.timeout(30):
        assert set(await asyncio.gather(*waits)) == {-signal.SIGKILL}
    with pytest.raises(EngineError):
        await machine.pause()
    error = await machine.obituary()
    assert error.error_code == "qemu_died"
    await machine.kill()


async def test_only_a_paused_machine_is_saved(bench: Bench, tmp_path: Path) -> None:
    machine = await bench.booted()
    target = tmp_path / "save"
    target.mkdir()
    with pytest.raises(EngineError) as caught:
        await machine.save(target)
    assert caught.value.error_code == "machine_running"
    assert not list(target.iterdir())
    await machine.kill()


async def test_a_boot_that_fails_leaves_no_process(bench: Bench) -> None:
    at = bench.attachment()
    missing = replace(bench.kernel, kernel=Path("/nonexistent/kernel"))
    with pytest.raises(EngineError):
        await bench.engine.boot(bench.spec, missing, at)


async def test_clones_are_restored_paused_from_what_was_saved(bench: Bench) -> None:
    template = await bench.template()
    names = {"memory", "device-state"} | ({"disk"} if bench.spec.disk_bytes else set())
    assert template.manifest.files.keys() == names
    for _ in range(2):
        shell = await bench.engine.prepare(template, bench.attachment())
        clone = await shell.load(template)
        assert clone.pid == shell.pid
        assert clone.spec == bench.spec
        await clone.pause()
        await clone.resume()
        await clone.resume()
        await clone.kill()
    template.verify()  # what clones do never reaches what they share


async def test_a_shell_dies_alone_and_says_so(bench: Bench) -> None:
    template = await bench.template()
    shell = await bench.engine.prepare(template, bench.attachment())
    os.kill(shell.pid, signal.SIGKILL)
    assert await shell.wait() == -signal.SIGKILL
    with pytest.raises(EngineError):
        await shell.load(template)
    await shell.kill()


async def test_a_state_that_is_none_is_refused_and_leaves_nothing(bench: Bench) -> None:
    template = await bench.template()
    shell = await bench.engine.prepare(template, bench.attachment())
    template.device_state.chmod(0o600)
    template.device_state.write_bytes(b"no state at all")
    with pytest.raises(SnapshotError) as caught:
        await shell.load(template)
    assert caught.value.error_code == "snapshot_refused"
    assert await shell.wait() != 0
    with pytest.raises(ProcessLookupError):
        os.kill(shell.pid, 0)


async def test_a_stranger_to_the_template_is_refused(bench: Bench) -> None:
    template = await bench.template()
    stranger = replace(template, manifest=_renamed(template, "other", base=None))
    child = replace(
        template,
        manifest=_renamed(template, "child", base=template.as_base),
        delta=Delta(spans=(), data=memoryview(b"")),
    )
    remade = snapshot.Base(id="template", memory="another")
    orphan = replace(template, manifest=_renamed(template, "orphan", base=remade))
    for unfit in (stranger, orphan):
        shell = await bench.engine.prepare(template, bench.attachment())
        with pytest.raises(SnapshotError) as caught:
            await shell.load(unfit)
        assert caught.value.error_code == "snapshot_unfit"
    shell = await bench.engine.prepare(template, bench.attachment())
    await (await shell.load(child)).kill()


async def test_a_machine_runs_on_after_its_checkpoint_which_shells_load(bench: Bench) -> None:
    template = await bench.template()
    parent = await bench.restored(template, template)
    await parent.resume()
    checkpoint = await bench.checkpoint(parent, template, "one")
    assert checkpoint.manifest.base == template.as_base
    layers = {"layer-00"} if bench.spec.disk_bytes else set()
    assert checkpoint.manifest.files.keys() == {"device-state", "pages"} | layers
    await parent.pause()
    child = await bench.restored(template, checkpoint)
    await child.resume()
    grandchild = await bench.restored(template, await bench.checkpoint(child, template, "two"))
    for machine in (parent, child, grandchild):
        await machine.resume()
        os.kill(machine.pid, 0)
        await machine.kill()
    template.verify()
    checkpoint.verify()


async def test_only_a_paused_machine_that_was_restored_is_captured(bench: Bench) -> None:
    template = await bench.template()
    booted = await bench.booted()
    with pytest.raises(EngineError) as caught:
        booted.capture(bench.attachment().directory)
    assert caught.value.error_code == "machine_booted"
    await booted.kill()
    machine = await bench.restored(template, template)
    await machine.resume()
    directory = bench.attachment().directory
    with pytest.raises(EngineError) as caught:
        async with machine.capture(directory) as capture:
            await capture.take()
    assert caught.value.error_code == "machine_running"
    assert list(directory.iterdir()) == []
    await machine.pause()
    async with machine.capture(directory) as capture:
        await capture.take()
        await machine.kill()  # what was taken needs it no more
        await capture.write()
    layers = {"layer-00"} if bench.spec.disk_bytes else set()
    assert {path.name for path in directory.iterdir()} == {"device-state", "pages"} | layers


async def test_captures_of_one_machine_wait_for_each_other(bench: Bench) -> None:
    template = await bench.template()
    parent = await bench.restored(template, template)
    await parent.resume()
    entered: list[str] = []

    async def captured(name: str) -> None:
        async with parent.capture(bench.attachment().directory) as capture:
            entered.append(name)
            await parent.pause()
            await capture.take()
            await capture.write()
            assert entered[-1] == name
            entered.append(name)

    async with asyncio.TaskGroup() as group:
        for name in ("one", "two", "three"):
            group.create_task(captured(name))
    assert entered[::2] == entered[1::2]
    assert len(entered) == 6
    child = await bench.restored(template, await bench.checkpoint(parent, template, "last"))
    for machine in (parent, child):
        await machine.kill()


async def test_a_capture_of_a_machine_that_died_fails_and_leaves_nothing(bench: Bench) -> None:
    template = await bench.template()
    machine = await bench.restored(template, template)
    directory = bench.attachment().directory
    async with machine.capture(directory) as capture:
        os.kill(machine.pid, signal.SIGKILL)
        await machine.wait()
        with pytest.raises(EngineError):
            await capture.take()
    assert list(directory.iterdir()) == []
    with pytest.raises(EngineError):
        async with machine.capture(directory) as capture:
            await capture.take()
    assert list(directory.iterdir()) == []
    await machine.kill()


async def lost(bench: Bench, template: Snapshot, point: Point) -> Attachment:
    """Return where a machine is whose manager was killed when it had come to `point`."""
    at = bench.attachment()
    name = "fake" if isinstance(bench.engine, FakeEngine) else "qemu"
    manager = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.lost_manager", name),
        *(template.directory, at.directory, point),
        cwd=Path(__file__).parents[2],
        stdout=asyncio.subprocess.PIPE,
    )
    assert manager.stdout is not None
    said = await manager.stdout.readline()
    manager.kill()
    await manager.wait()
    assert said == b"there\n"
    return at


@pytest.mark.parametrize("point", [point for point in Point if point is not Point.WAITING])
async def test_a_machine_whose_manager_was_killed_goes_on_under_another(
    bench: Bench, point: Point
) -> None:
    on_qemu, with_disk = isinstance(bench.engine, QemuEngine), bench.spec.disk_bytes
    if on_qemu and not with_disk and point is not Point.TAKEN:
        pytest.skip("what a machine with a disk goes through is enough")
    await goes_on_under_another(bench, point)


async def goes_on_under_another(bench: Bench, point: Point) -> None:
    """Kill a manager at `point`, and adopt what it leaves, twice."""
    template = await bench.template()
    at = await lost(bench, template, point)
    machine = await bench.engine.adopt(template, at)
    directory = bench.attachment().directory
    with pytest.raises(EngineError) as caught:
        async with machine.capture(directory) as capture:
            await capture.take()
    assert caught.value.error_code == "machine_running"
    child = await bench.restored(template, await bench.checkpoint(machine, template, "one"))
    assert machine.spec == child.spec
    await child.kill()
    await machine.release()
    machine = await bench.engine.adopt(template, at)  # and once more
    await bench.checkpoint(machine, template, "two")
    os.kill(machine.pid, 0)
    waiting = asyncio.ensure_future(machine.wait())
    await machine.kill()
    assert await waiting == UNKNOWN_EXIT
    with pytest.raises(EngineError) as caught:
        await bench.engine.adopt(template, at)
    assert caught.value.error_code == "machine_lost"
    template.verify()


async def test_what_never_ran_is_not_adopted_and_left_as_it_is(bench: Bench) -> None:
    template = await bench.template()
    with pytest.raises(EngineError) as caught:
        await bench.engine.adopt(template, bench.attachment())
    assert caught.value.error_code == "machine_lost"
    if isinstance(bench.engine, FakeEngine):
        return  # an agent without a hypervisor has no state to wait for
    at = await lost(bench, template, Point.WAITING)
    with pytest.raises(EngineError) as caught:
        await bench.engine.adopt(template, at)
    assert caught.value.error_code == "machine_lost"
    assert await reap(at.directory)


@pytest.mark.parametrize("steps", [0, 1, 2, 4, 8, 16])
async def test_a_cancelled_restore_leaves_nothing(bench: Bench, steps: int) -> None:
    template = await bench.template()

    async def restored() -> None:
        shell = await bench.engine.prepare(template, bench.attachment())
        await (await shell.load(template)).kill()

    restore = asyncio.ensure_future(restored())
    for _ in range(steps):
        await asyncio.sleep(0)
    restore.cancel()
    with pytest.raises(asyncio.CancelledError):
        await restore


async def test_a_cancelled_load_leaves_nothing(bench: Bench) -> None:
    template = await bench.template()
    for steps in (0, 1, 2, 3):
        shell = await bench.engine.prepare(template, bench.attachment())
        if isinstance(bench.engine, FakeEngine):
            bench.engine.faults = Faults(load_delay=60.0)  # it is not to come before the end
        load = asyncio.ensure_future(shell.load(template))
        for _ in range(steps):
            await asyncio.sleep(0)
        load.cancel()
        with pytest.raises(asyncio.CancelledError):
            await load
        if steps == 0:
            await shell.kill()  # cancelled before its first step, so it was never called
        with pytest.raises(ProcessLookupError):
            os.kill(shell.pid, 0)


def _renamed(template: Snapshot, name: str, base: Base | None) -> snapshot.Manifest:
    return structs.replace(template.manifest, id=name, base=base)
