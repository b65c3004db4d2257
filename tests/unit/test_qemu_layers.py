"""A disk is frozen as often as one likes: its layers are merged, and nobody's are written."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.forebears import Bench, on_disk, woken
from tests.unit import test_qemu_capture_disk
from vmpool.engine.qemu import QemuMachine, layers, merge, nodes
from vmpool.errors import DiskFullError, EngineError
from vmpool.model import Attachment
from vmpool.snapshot import Snapshot

disk_bench = test_qemu_capture_disk.disk_bench


async def written(bench: Bench, machine: QemuMachine, number: int) -> Snapshot:
    """Write a block of a number to a disk, in its place, and return a checkpoint of it."""
    await on_disk(machine, f"write -P {number} {64 * number}k 64k")
    return (await bench.captured(machine))[0]


async def reads(machine: QemuMachine, numbers: range) -> None:
    for number in numbers:
        await on_disk(machine, f"read -P {number} {64 * number}k 64k")


def opened(machine: QemuMachine) -> int:
    return len(list(Path(f"/proc/{machine.pid}/fd").iterdir()))


async def test_a_disk_with_too_many_layers_has_them_merged_and_checkpoints_stay_as_they_were(
    disk_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = disk_bench
    monkeypatch.setattr(layers, "LAYERS_MOST", 2)
    parent = await woken(bench, bench.template)
    saved = [await written(bench, parent, number) for number in range(1, 8)]
    assert [len(checkpoint.layers) for checkpoint in saved] == [1, 2, 1, 2, 1, 2, 1]
    for checkpoint in saved:
        checkpoint.verify()
    for number in (2, 5, 7):
        child = await woken(bench, saved[number - 1])
        await reads(child, range(1, number + 1))
        await on_disk(child, f"read -P 0 {64 * (number + 1)}k 64k")
        await child.kill()
    before = opened(parent)
    for number in range(8, 12):
        await written(bench, parent, number)
    assert opened(parent) == before  # what was merged is closed
    files = {path.name for path in parent._directory.iterdir()}
    assert len([name for name in files if name.startswith(("scratch", "overlay"))]) == 2
    await parent.kill()
    bench.template.verify()


async def test_a_fork_of_a_fork_goes_twenty_deep(disk_bench: Bench) -> None:
    bench = disk_bench
    machine = await woken(bench, bench.template)
    depth = layers.LAYERS_MOST + 4
    for number in range(1, depth + 1):
        checkpoint = await written(bench, machine, number)
        await machine.kill()
        machine = await woken(bench, checkpoint)
        checkpoint.remove()  # no depth needs the ones above
    await reads(machine, range(1, depth + 1))
    await machine.kill()
    bench.template.verify()


async def test_a_merge_that_its_manager_did_not_see_to_the_end_is_given_up_by_the_next(
    disk_bench: Bench,
) -> None:
    bench = disk_bench
    machine = await woken(bench, bench.template)
    for number in (1, 2):
        await written(bench, machine, number)
    started = machine._hypervisor
    await started.execute(
        "block-stream",
        **{"job-id": "merge", "device": "scratch2", "base-node": nodes.BOTTOM},
        speed=1,  # so that it does not end
        backing_file="",
    )
    await machine._layers.prepare()  # type: ignore[union-attr]
    directory = machine._directory
    assert (directory / "scratch3").exists()
    await machine.release()
    machine = await bench.engine.adopt(bench.template, Attachment(directory=directory))
    assert await machine._hypervisor.execute("query-jobs") == []
    found = await machine._hypervisor.execute("query-named-block-nodes", flat=True)
    assert not [node["node-name"] for node in found if node["node-name"].startswith("scratch3")]
    assert not (directory / "scratch3").exists()
    await machine.pause()
    checkpoint = await written(bench, machine, 3)
    assert len(checkpoint.layers) == 3
    child = await woken(bench, checkpoint)
    await reads(child, range(1, 4))
    for each in (machine, child):
        await each.kill()


@pytest.mark.parametrize("steps", [1, 20, 60])
async def test_a_merge_that_is_cancelled_leaves_the_disk_as_it_reads(
    disk_bench: Bench, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    bench = disk_bench
    machine = await woken(bench, bench.template)
    await written(bench, machine, 1)
    monkeypatch.setattr(layers, "LAYERS_MOST", 1)
    work = asyncio.ensure_future(bench.captured(machine))
    for _ in range(steps):
        await asyncio.sleep(0)
    work.cancel()
    await asyncio.wait([work])
    checkpoint = await written(bench, machine, 2)
    assert len(checkpoint.layers) == 1
    child = await woken(bench, checkpoint)
    await reads(child, range(1, 3))
    for each in (machine, child):
        await each.kill()


async def test_a_merge_that_fails_says_why_and_the_next_one_goes_well(
    disk_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = disk_bench
    machine = await woken(bench, bench.template)
    ended = merge._ended
    for said, error, code in (
        ("No space left on device", DiskFullError, "host_disk_full"),
        ("Input/output error", EngineError, "disk_unmerged"),
    ):
        monkeypatch.setattr(layers, "LAYERS_MOST", 16)
        await written(bench, machine, 1)
        monkeypatch.setattr(layers, "LAYERS_MOST", 1)

        async def failing(*arguments: object, said: str = said) -> str:
            await ended(*arguments)  # type: ignore[arg-type]
            return said

        monkeypatch.setattr(merge, "_ended", failing)
        with pytest.raises(error) as caught:
            await bench.captured(machine)
        assert caught.value.error_code == code
        monkeypatch.setattr(merge, "_ended", ended)
    child = await woken(bench, await written(bench, machine, 2))
    await reads(child, range(1, 3))
    for each in (machine, child):
        await each.kill()


async def test_an_overlay_that_qemu_refuses_leaves_nothing_and_the_next_is_taken(
    disk_bench: Bench,
) -> None:
    bench = disk_bench
    machine = await woken(bench, bench.template)
    before = opened(machine)
    await machine._hypervisor.execute("blockdev-add", driver="null-co", **{"node-name": "scratch1"})
    with pytest.raises(EngineError) as caught:
        await bench.captured(machine)
    assert caught.value.error_code == "qmp_refused"
    found = await machine._hypervisor.execute("query-named-block-nodes", flat=True)
    assert "scratch1-file" not in {node["node-name"] for node in found}
    assert opened(machine) == before
    os.kill(machine.pid, 0)
    checkpoint = await written(bench, machine, 1)
    child = await woken(bench, checkpoint)
    await reads(child, range(1, 2))
    for each in (machine, child):
        await each.kill()
