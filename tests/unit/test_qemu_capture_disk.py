"""Checkpoints of machines with a disk: what a child's is, and which are not kept."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.forebears import Bench, on_disk, opened, woken
from vmpool import snapshot
from vmpool.engine.qemu import sparse
from vmpool.errors import EngineError
from vmpool.model import MIB, MachineType

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def disk_bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with opened(tmp_path, MachineType.Q35, disk_bytes=8 * MIB) as bench:
        yield bench


async def test_a_childs_disk_is_its_parents_at_the_fork_and_then_its_own(
    disk_bench: Bench,
) -> None:
    bench = disk_bench
    parent = await woken(bench, bench.template)
    await on_disk(parent, "write -P 1 0 64k")
    one, _ = await bench.captured(parent)
    await on_disk(parent, "write -P 2 64k 64k")
    two, _ = await bench.captured(parent)
    await on_disk(parent, "write -P 3 0 64k")
    assert [len(checkpoint.layers) for checkpoint in (one, two)] == [1, 2]
    assert one.layers[0].samefile(two.layers[0])  # frozen once, stored once

    early = await woken(bench, one)
    late = await woken(bench, two)
    for line in ("read -P 1 0 64k", "read -P 0 64k 64k"):
        await on_disk(early, line)
    for line in ("read -P 1 0 64k", "read -P 2 64k 64k", "write -P 4 128k 64k"):
        await on_disk(late, line)
    for checkpoint in (one, two):
        checkpoint.verify()  # what anyone writes goes elsewhere
        checkpoint.remove()  # and nobody needs it any more
    last, _ = await bench.captured(late)
    assert len(last.layers) == 3
    grandchild = await woken(bench, last)
    for line in ("read -P 1 0 64k", "read -P 2 64k 64k", "read -P 4 128k 64k"):
        await on_disk(grandchild, line)
    for line in ("read -P 3 0 64k", "read -P 0 128k 64k"):
        await on_disk(parent, line)
    for machine in (parent, early, late, grandchild):
        await machine.kill()
    bench.template.verify()


async def test_an_overlay_that_leads_elsewhere_is_not_kept(disk_bench: Bench) -> None:
    parent, _ = await disk_bench.restored(disk_bench.template)
    partial = snapshot.begin(disk_bench.directory)
    async with parent.capture(partial) as taken:
        await taken.take()
        (overlay,) = disk_bench.directory.glob("*/overlay")
        with overlay.open("r+b") as file:
            file.seek(8)  # the offset of a backing file's name, and its length
            file.write(struct.pack(">QI", 512, 9))
        with pytest.raises(EngineError) as caught:
            await taken.write()
    assert caught.value.error_code == "disk_layer_unfit"
    assert list(partial.iterdir()) == []
    await parent.kill()


async def test_an_overlay_that_is_changed_as_it_is_copied_is_not_kept(
    disk_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, _ = await disk_bench.restored(disk_bench.template)
    partial = snapshot.begin(disk_bench.directory)
    copy = sparse.copy

    def change_first(source: int, target: Path) -> None:
        (overlay,) = disk_bench.directory.glob("*/overlay")
        with overlay.open("r+b") as file:
            file.seek(8)  # the offset of a backing file's name, and its length
            file.write(struct.pack(">QI", 512, 9))
        copy(source, target)

    monkeypatch.setattr(sparse, "copy", change_first)
    async with parent.capture(partial) as taken:
        await taken.take()
        with pytest.raises(EngineError) as caught:
            await taken.write()
    assert caught.value.error_code == "disk_layer_unfit"
    assert list(partial.iterdir()) == []
    await parent.kill()
