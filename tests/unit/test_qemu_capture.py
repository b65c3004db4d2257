"""Checkpoints of machines under QEMU: what a child has of its parent, and what it costs."""

from __future__ import annotations

import asyncio
import os
import random
import select
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from msgspec import structs

from tests import tiny_guest
from tests.forebears import FREE, FREE_END, MEMORY_BYTES, PAGE, Bench, opened, woken
from vmpool import snapshot
from vmpool.delta import Delta
from vmpool.engine.qemu import capture, graft, huge, inlay, pagemap
from vmpool.errors import DiskFullError, EngineError, HostError, SnapshotError
from vmpool.model import MIB, MachineType
from vmpool.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture(params=[MachineType.Q35, MachineType.MICROVM])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    async with opened(tmp_path, request.param, disk_bytes=0) as bench:
        yield bench


async def test_a_child_goes_on_where_its_parent_was_and_neither_sees_the_other(
    bench: Bench,
) -> None:
    parent, parents = await bench.restored(bench.template)
    await parent.resume()
    await parents.counted_beyond(parents.count + 1000)
    await parent.pause()
    at_fork = parents.count
    checkpoint, _ = await bench.captured(parent)
    await parent.resume()
    await parents.counted_beyond(at_fork)

    child, childs = await bench.restored(checkpoint)
    assert childs.count == at_fork  # memory
    await child.resume()
    await childs.counted_beyond(at_fork)
    await child.pause()
    assert at_fork < childs.count < 1 << 31  # the register that is counted in
    before = parents.count
    await parents.counted_beyond(before)
    childs.write(FREE, b"the child's")
    assert parents.read(FREE, 11) == bytes(11)
    grandchild, grandchilds = await bench.restored((await bench.captured(child))[0])
    assert grandchilds.count == childs.count
    assert grandchilds.read(FREE, 11) == b"the child's"
    for machine in (parent, child, grandchild):
        await machine.kill()
    bench.template.verify()


@pytest.mark.parametrize("limit", [capture.BUFFER_LIMIT_BYTES, 5 * PAGE])
async def test_every_page_is_in_the_child_and_no_more_than_the_pages_is_written(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(capture, "BUFFER_LIMIT_BYTES", limit)
    parent, parents = await bench.restored(bench.template)
    chosen = random.Random(limit)
    pages = sorted(chosen.sample(range(FREE // PAGE, FREE_END // PAGE), 1500))
    written = {page * PAGE: chosen.randbytes(PAGE) for page in pages}
    written |= {8 * MIB: chosen.randbytes(4 * MIB)}  # neighbours, many batches long
    for offset, data in written.items():
        parents.write(offset, data)
    assert parents.read(tiny_guest.MARK, 4) == b"\xff" * 4
    parents.write(tiny_guest.MARK, bytes(PAGE))  # zero, where the template is not
    checkpoint, dirty_bytes = await bench.captured(parent)
    assert sum(map(len, written.values())) < dirty_bytes < 12 * MIB
    stored = sum(file.size_bytes for file in checkpoint.manifest.files.values())
    assert stored < 1.1 * dirty_bytes
    assert checkpoint.pages.stat().st_blocks * 512 < stored  # what is zero takes no space
    child, childs = await bench.restored(checkpoint)
    for offset, data in written.items():
        assert childs.read(offset, len(data)) == data
    assert childs.read(tiny_guest.MARK, PAGE) == bytes(PAGE)
    assert childs.count == parents.count
    for machine in (parent, child):
        await machine.kill()


@pytest.mark.parametrize("limit", [capture.BUFFER_LIMIT_BYTES, 5 * PAGE])
async def test_children_are_loaded_from_what_is_lent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(capture, "BUFFER_LIMIT_BYTES", limit)
    parent, parents = await bench.restored(bench.template)
    data = os.urandom(12 * MIB)
    parents.write(FREE, data)
    partial = snapshot.begin(bench.directory)
    async with parent.capture(partial) as taken:
        await taken.take()
        parents.write(FREE, bytes(PAGE))
        own = await taken.lend()
        assert (own is None) == (limit == 5 * PAGE)
        assert (partial / snapshot.PAGES).exists() == (own is None)
        children = [await bench.restored(lent(bench, partial, own)) for _ in range(2)]
        assert bench.engine._shared.room.taken_bytes >= min(limit, 12 * MIB)
    assert bench.engine._shared.room.taken_bytes == 0
    for child, childs in children:
        assert childs.read(FREE, len(data)) == data
        assert childs.count == parents.count
        await child.kill()
    await parent.kill()


@pytest.mark.parametrize("way", ["mapped", "refused", "unshared"])
async def test_children_share_what_they_do_not_write_and_their_children_have_all_of_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def refused(*_: object) -> int:
        raise PermissionError(1, "no")

    if way == "refused":
        monkeypatch.setattr(inlay, "lay", refused)
    elif way == "unshared":
        monkeypatch.setattr(huge, "create", refused)
    parent, parents = await bench.restored(bench.template)
    stretches = {FREE: 16 * MIB, FREE + 18 * MIB: 16 * PAGE, FREE + 19 * MIB: PAGE}
    written = {offset: os.urandom(size) for offset, size in stretches.items()}
    for offset, data in written.items():
        parents.write(offset, data)
    partial = snapshot.begin(bench.directory)
    async with parent.capture(partial) as taken:
        await taken.take()
        state = lent(bench, partial, await taken.lend())
        children = [await bench.restored(state) for _ in range(2)]
    await parent.kill()
    for child, childs in children:
        found = pagemap.find_mappings(child.pid, bench.template.memory, MEMORY_BYTES)
        inlaid = [each.end - each.start for each in found if each.inlaid]
        assert inlaid == ([16 * MIB, 16 * PAGE] if way == "mapped" else [])
        for offset, data in written.items():
            assert childs.read(offset, len(data)) == data
    (child, childs), (other, others) = children
    childs.write(FREE + PAGE, b"the child's")
    assert others.read(FREE, 16 * MIB) == written[FREE]
    checkpoint, dirty_bytes = await bench.captured(child)
    assert dirty_bytes >= sum(stretches.values())
    grandchild, grandchilds = await bench.restored(checkpoint)
    await child.kill()
    checkpoint.remove()
    for offset, data in written.items():
        wanted = bytearray(data)
        if offset == FREE:
            wanted[PAGE : PAGE + 11] = b"the child's"
        assert grandchilds.read(offset, len(data)) == wanted
    assert grandchilds.count == others.count
    for machine in (other, grandchild):
        await machine.kill()


def lent(bench: Bench, directory: Path, own: Delta | None) -> Snapshot:
    files = {
        path.name: snapshot.FileRecord(size_bytes=0, digest="") for path in directory.iterdir()
    }
    manifest = structs.replace(bench.template.manifest, files=files, base=bench.template.as_base)
    return Snapshot(directory=directory, manifest=manifest, delta=own)


async def test_a_hypervisor_that_does_not_stop_to_be_given_pages_is_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(pid: int, *_: object) -> None:
        end = os.pidfd_open(pid)
        ended = select.select([end], [], [], 20)[0]
        os.close(end)
        assert ended, "nobody ended it"
        raise ProcessLookupError(3, "gone")

    monkeypatch.setattr(inlay, "lay", stuck)
    monkeypatch.setattr(graft, "WORTH_BYTES", 1)
    monkeypatch.setattr(graft, "LAY_TIMEOUT", 0.1)
    parent, parents = await bench.restored(bench.template)
    parents.write(FREE, os.urandom(MIB))
    checkpoint, _ = await bench.captured(parent)
    with pytest.raises(EngineError):
        await bench.restored(checkpoint)
    await parent.kill()


async def test_a_child_of_pages_that_are_damaged_is_refused_and_gone(bench: Bench) -> None:
    parent, _ = await bench.restored(bench.template)
    checkpoint, _ = await bench.captured(parent)
    checkpoint.pages.chmod(0o600)
    with checkpoint.pages.open("r+b") as file:
        file.write(b"something")
    with pytest.raises(SnapshotError) as caught:
        await bench.restored(checkpoint)
    assert caught.value.error_code == "snapshot_damaged"
    await parent.kill()


async def test_checkpoints_leave_nothing_open_in_the_hypervisor(bench: Bench) -> None:
    parent, _ = await bench.restored(bench.template)
    await bench.captured(parent)
    descriptors = Path(f"/proc/{parent.pid}/fd")
    opened_before = len(list(descriptors.iterdir()))
    for _ in range(3):
        await bench.captured(parent)
    assert len(list(descriptors.iterdir())) == opened_before
    checkpoint, _ = await bench.captured(parent)
    child = await woken(bench, checkpoint)
    files = [path.readlink() for path in Path(f"/proc/{child.pid}/fd").iterdir()]
    assert bench.template.memory in files
    assert checkpoint.device_state not in files  # or it would stay with the child
    for machine in (parent, child):
        await machine.kill()


async def test_a_machine_is_not_held_still_for_others_who_keep_the_loops_threads_busy(
    bench: Bench,
) -> None:
    parent, _ = await bench.restored(bench.template)
    busy, done = ThreadPoolExecutor(max_workers=1), threading.Event()
    asyncio.get_running_loop().set_default_executor(busy)
    waiting = asyncio.ensure_future(asyncio.to_thread(done.wait, 60))
    partial = snapshot.begin(bench.directory)
    async with asyncio.timeout(20), parent.capture(partial) as taken:
        await taken.take()
        await taken.write()
    done.set()
    await waiting
    await parent.kill()


async def test_what_grows_between_the_count_and_the_pause_is_taken_all_the_same(
    bench: Bench,
) -> None:
    parent, parents = await bench.restored(bench.template)
    partial = snapshot.begin(bench.directory)
    async with parent.capture(partial) as taken:
        parents.write(FREE, os.urandom(24 * MIB))
        await taken.take()
        at_pause = parents.read(FREE, PAGE)
        parents.write(FREE, bytes(PAGE))  # the parent runs on before anything is written
        await taken.write()
    assert taken.dirty_bytes >= 24 * MIB
    assert at_pause in (partial / snapshot.PAGES).read_bytes()
    await parent.kill()


async def test_a_full_disk_leaves_no_checkpoint_and_the_parent_well(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, parents = await bench.restored(bench.template)
    parents.write(FREE, os.urandom(8 * MIB))
    write, left = os.pwrite, 3

    def full(descriptor: int, data: bytes, offset: int) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[: 1 << 20], offset)

    partial = snapshot.begin(bench.directory)
    taken = parent.capture(partial)
    async with taken:
        await taken.take()
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(DiskFullError):
            await taken.write()
        monkeypatch.undo()
    assert list(partial.iterdir()) == []
    await parent.resume()
    await parents.counted_beyond(parents.count)
    await parent.kill()


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 10, 20, 40])
async def test_a_capture_that_is_cancelled_leaves_nothing_and_the_parent_well(
    bench: Bench, steps: int
) -> None:
    parent, parents = await bench.restored(bench.template)
    partial = snapshot.begin(bench.directory)
    captured = []

    async def captures() -> None:
        async with parent.capture(partial) as taken:
            await taken.take()
            await taken.write()
            captured.append(True)

    work = asyncio.ensure_future(captures())
    for _ in range(steps):
        await asyncio.sleep(0)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert not captured
    assert list(partial.iterdir()) == []
    checkpoint, _ = await bench.captured(parent)  # and another one is well
    child, childs = await bench.restored(checkpoint)
    assert childs.count == parents.count
    for machine in (parent, child):
        await machine.kill()


async def test_a_checkpoint_with_a_flipped_byte_is_refused_and_leaves_no_child(
    bench: Bench,
) -> None:
    parent, _ = await bench.restored(bench.template)
    checkpoint, _ = await bench.captured(parent)
    path = checkpoint.device_state
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[8] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(SnapshotError) as caught:
        checkpoint.verify()
    assert caught.value.error_code == "snapshot_damaged"
    with pytest.raises(SnapshotError) as caught:
        await bench.restored(checkpoint)
    assert caught.value.error_code == "snapshot_refused"
    await parent.kill()


async def test_a_machine_whose_memory_may_not_be_read_is_told_by_what_lacks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, _ = await bench.restored(bench.template)
    partial = snapshot.begin(bench.directory)

    def refused(*_: object) -> list[pagemap.Span]:
        raise pagemap.unreadable(parent.pid, PermissionError(1, "Operation not permitted"))

    monkeypatch.setattr(pagemap, "find_written", refused)
    with pytest.raises(HostError) as caught:
        async with parent.capture(partial):
            pytest.fail("entered")
    assert caught.value.error_code == "memory_unreadable"
    assert list(partial.iterdir()) == []
    await parent.kill()
