"""A base snapshot lives as long as something descends from it, whatever became of its template."""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.api.conftest import IMAGE
from tests.fake_host import OWNER, add_template, opened, wanted
from tests.fakes import FakeEngine, Faults
from vmpool.errors import CapacityError, EngineError, SnapshotError
from vmpool.model import MIB
from vmpool.policy import Census
from vmpool.snapshot import MEMORY, Base

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.catalogue import Catalogue
    from vmpool.host import Host

MORE_MEMORY = 512 * MIB


def snapshots(state: Path) -> set[str]:
    return {path.name for path in (state / "snapshots").iterdir()}


def base_of(catalogue: Catalogue, name: str = IMAGE) -> str:
    return str(catalogue.status(name).snapshot)


async def refusal(catalogue: Catalogue, base: Base | str) -> str:
    """Return the code with which a lineage is refused."""
    with pytest.raises((SnapshotError, CapacityError)) as raised:
        await catalogue.lineage(base)
    return raised.value.error_code


async def test_the_lineage_of_a_template_is_its_snapshot_and_its_pool(host: Host) -> None:
    catalogue = host.catalogue
    lineage = await catalogue.lineage(base_of(catalogue))
    assert lineage.template == IMAGE
    assert lineage.pool is catalogue.pool(IMAGE)
    assert await catalogue.lineage(lineage.snapshot.as_base) == lineage


async def test_a_base_that_is_made_anew_is_another(host: Host) -> None:
    found = await host.catalogue.lineage(base_of(host.catalogue))
    former = Base(id=found.snapshot.manifest.id, memory="0" * 64)
    assert await refusal(host.catalogue, former) == "base_missing"
    assert await refusal(host.catalogue, "neverwas") == "base_missing"


async def test_a_base_outlives_its_template_as_long_as_a_clone_of_it_is_held(
    host: Host, state: Path
) -> None:
    catalogue = host.catalogue
    base, former = base_of(catalogue), catalogue.pool(IMAGE)
    sandbox = await host.create(wanted(), owner=OWNER)
    await add_template(host, memory_bytes=MORE_MEMORY)
    assert snapshots(state) == {base, base_of(catalogue)}
    lineage = await catalogue.lineage(base)
    assert (lineage.pool, lineage.template) == (former, IMAGE)
    assert lineage.pool.limits.total == former.limits.total
    place = lineage.pool.reserve()
    assert lineage.pool.census == Census(held=2)
    await host.kill(sandbox.id, owner=OWNER)
    await catalogue.release_base(base)
    assert base in snapshots(state)
    place.give_up()
    await catalogue.release_base(base)
    assert snapshots(state) == {base_of(catalogue)}
    assert await refusal(catalogue, base) == "base_missing"
    with pytest.raises(CapacityError):
        lineage.pool.reserve()


async def test_a_base_outlives_its_template_as_long_as_a_checkpoint_needs_it(
    host: Host, state: Path
) -> None:
    catalogue, needed = host.catalogue, {base_of(host.catalogue)}
    catalogue.in_use = lambda: needed
    (base,) = needed
    await catalogue.remove(IMAGE)
    assert snapshots(state) == {base}
    lineage = await catalogue.lineage(base)
    assert lineage.pool.census == Census()
    with pytest.raises(CapacityError):
        await lineage.pool.acquire(deadline=asyncio.get_running_loop().time() + 60)
    await catalogue.release_base(base)
    assert snapshots(state) == {base}
    needed.clear()
    await catalogue.release_base(base)
    await catalogue.release_base(base)
    assert not snapshots(state)


async def test_a_base_in_use_is_not_removed_with_the_qemu_that_made_it(
    host: Host, state: Path
) -> None:
    base = base_of(host.catalogue)
    await host.catalogue.close()
    other = shutil.copytree(state, state.with_name(f"{state.name}-q"))
    async with opened(other, FakeEngine(version="11.0.0")) as again:
        again.catalogue.in_use = lambda: {base}
        await again.catalogue.settled(IMAGE)
        assert snapshots(other) == {base, base_of(again.catalogue)}
        assert await refusal(again.catalogue, base) == "snapshot_unfit"


async def test_a_base_without_a_template_is_found_after_a_restart_and_checked_once(
    host: Host, state: Path
) -> None:
    base = base_of(host.catalogue)
    await host.catalogue.close()
    other = shutil.copytree(state, state.with_name(f"{state.name}-s"))
    async with opened(other, FakeEngine()) as again:
        catalogue = again.catalogue
        catalogue.in_use = lambda: {base}
        await catalogue.settled(IMAGE)
        await catalogue.remove(IMAGE)
    async with opened(other, FakeEngine()) as again:
        first, second = await asyncio.gather(*(again.catalogue.lineage(base) for _ in range(2)))
        assert first is second
        assert not again.catalogue.statuses
        assert first.pool.limits.ready == 0
        first.pool.reserve().give_up()
        assert not list((other / "run/clones").iterdir())


async def test_a_base_without_a_template_that_is_damaged_is_refused(
    host: Host, state: Path
) -> None:
    catalogue, base = host.catalogue, base_of(host.catalogue)
    await catalogue.close()
    other = shutil.copytree(state, state.with_name(f"{state.name}-d"))
    async with opened(other, FakeEngine()) as again:
        await again.catalogue.settled(IMAGE)
        again.catalogue.in_use = lambda: {base}
        await again.catalogue.remove(IMAGE)
        memory = other / "snapshots" / base / MEMORY
        memory.chmod(0o644)
        memory.write_bytes(b"\1" + memory.read_bytes()[1:])
    async with opened(other, FakeEngine()) as again:
        assert await refusal(again.catalogue, base) == "snapshot_damaged"
        assert base in snapshots(other)


async def test_a_lineage_waits_for_the_template_that_is_being_brought_up(
    host: Host, state: Path
) -> None:
    base = base_of(host.catalogue)
    await host.catalogue.close()
    other = shutil.copytree(state, state.with_name(f"{state.name}-w"))
    async with opened(other, FakeEngine()) as again:
        lineage = await again.catalogue.lineage(base)
        assert lineage.pool is again.catalogue.pool(IMAGE)


async def test_a_template_that_comes_back_takes_its_lineage_over(host: Host, state: Path) -> None:
    catalogue, base = host.catalogue, base_of(host.catalogue)
    sandbox = await host.create(wanted(), owner=OWNER)
    await catalogue.remove(IMAGE)
    await add_template(host)
    assert (await catalogue.lineage(base)).pool is catalogue.pool(IMAGE)
    await host.kill(sandbox.id, owner=OWNER)
    await catalogue.release_base(base)
    assert snapshots(state) == {base}
    await catalogue.remove(IMAGE)
    assert not snapshots(state)


async def test_a_template_that_failed_leaves_no_snapshot_when_it_is_removed(
    host: Host, state: Path
) -> None:
    base = base_of(host.catalogue)
    await host.catalogue.close()
    other = shutil.copytree(state, state.with_name(f"{state.name}-f"))
    (root,) = other.glob("images/*/root.erofs")
    root.chmod(0o644)
    root.write_bytes(b"\1" + root.read_bytes()[1:])
    engine = FakeEngine(Faults(boot=EngineError("no such machine")))
    async with opened(other, engine) as again:
        await again.catalogue.settled(IMAGE)
        assert snapshots(other) == {base}
        await again.catalogue.remove(IMAGE)
        assert not snapshots(other)


async def test_a_host_that_closes_has_no_lineage(host: Host) -> None:
    base = base_of(host.catalogue)
    await host.catalogue.close()
    assert await refusal(host.catalogue, base) == "pool_closed"


async def test_what_is_kept_of_a_template_that_is_gone_is_seen(host: Host) -> None:
    catalogue, base = host.catalogue, base_of(host.catalogue)
    assert await catalogue.bases() == {}
    catalogue.in_use = lambda: {base}
    await catalogue.remove(IMAGE)
    found = await catalogue.bases()
    assert found.keys() == {base}
    assert found[base] > 0
