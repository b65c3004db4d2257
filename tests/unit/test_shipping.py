"""A checkpoint goes from host to host as one file, whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.api.conftest import IMAGE
from tests.fake_host import OWNER, add_template, opened, wanted
from tests.fakes import FakeEngine
from vmpool.errors import VmpoolError
from vmpool.model import Code, Exited
from vmpool.shipping import Cargo

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vmpool.host import Host
    from vmpool.vault import Checkpoint


async def sent(host: Host, checkpoint: str, cargo: Cargo) -> bytes:
    """Return an exported checkpoint."""
    parts = host.export_checkpoint(checkpoint, owner=OWNER, cargo=cargo)
    return b"".join([part async for part in parts])


async def pieces(parcel: bytes, size_bytes: int = 5000) -> AsyncIterator[bytes]:
    for at in range(0, len(parcel), size_bytes):
        yield parcel[at : at + size_bytes]


async def received(host: Host, parcel: bytes, name: str | None = None) -> Checkpoint:
    return await host.import_checkpoint(pieces(parcel), owner=OWNER, name=name)


async def refusal(host: Host, parcel: bytes, name: str | None = None) -> str:
    """Return the code with which a parcel is refused, which leaves nothing."""
    before = kept_by(host)
    with pytest.raises(VmpoolError) as raised:
        await received(host, parcel, name)
    assert kept_by(host) == before
    return raised.value.error_code


def kept_by(host: Host) -> tuple[set[str], ...]:
    """Return what there is of snapshots and checkpoints on disk and in the vault."""
    state = host.settings.state
    found = [{path.name for path in (state / name).iterdir()} for name in FOLDERS]
    return (*found, {each.id for each in host._vault.of(OWNER)})


FOLDERS = ("snapshots", "checkpoints")


async def made_checkpoint(host: Host, name: str = "here") -> Checkpoint:
    """Return a checkpoint of a sandbox that is gone."""
    sandbox = await host.create(wanted(env={"A": "1"}), owner=OWNER)
    kept = await host.checkpoint(sandbox.id, owner=OWNER, name=name)
    await host.kill(sandbox.id, owner=OWNER)
    return kept


@contextlib.asynccontextmanager
async def elsewhere(state: Path, engine: FakeEngine) -> AsyncIterator[Host]:
    """Open a host that has the images of another one, and nothing else."""
    other = state.with_name(f"{state.name}-b")
    shutil.copytree(state / "images", other / "images")
    async with opened(other, engine) as host:
        yield host


async def test_a_checkpoint_comes_back_to_the_host_that_exported_it(host: Host) -> None:
    kept = await made_checkpoint(host)
    parcel = await sent(host, kept.id, Cargo.DELTA)
    assert await refusal(host, parcel) == "checkpoint_exists"
    back = await received(host, parcel, "again")
    assert back.id != kept.id
    assert (back.base_id, back.key, back.env) == (kept.base_id, kept.key, {"A": "1"})
    assert (back.saved_ns, back.dirty_bytes) == (kept.saved_ns, kept.dirty_bytes)
    await host.remove_checkpoint(kept.id, owner=OWNER)
    sandbox = await host.create(wanted(template="", checkpoint="again"), owner=OWNER)
    assert await runs(host, sandbox.id)


async def runs(host: Host, id: str) -> bool:
    sandbox = await host.sandbox(id, owner=OWNER)
    async with sandbox.execute(Code(source="pass")) as execution:
        return [event async for event in execution][-1] == Exited(exit_code=0)


async def test_a_checkpoint_with_its_base_goes_on_where_its_image_is(
    host: Host, state: Path
) -> None:
    kept = await made_checkpoint(host)
    parcel = await sent(host, "here", Cargo.WITH_BASE)
    engine = FakeEngine()
    async with elsewhere(state, engine) as other:
        there = await received(other, parcel)
        assert there.name == "here"
        assert there.base_id.startswith("imported")
        assert kept.base_id != there.base_id
        sandbox = await other.create(wanted(template="", checkpoint="here"), owner=OWNER)
        assert await runs(other, sandbox.id)
        assert (await received(other, parcel, "twice")).base_id == there.base_id
        back = await sent(other, "here", Cargo.DELTA)
        for name in ("here", "twice"):
            await other.remove_checkpoint(name, owner=OWNER)
        assert kept_by(other)[0] == {there.base_id}
        await other.kill(sandbox.id, owner=OWNER)
        assert kept_by(other) == (set(), set(), set())
        assert engine.boots == 0
    home = await received(host, back, "home")
    assert home.base_id == kept.base_id


async def test_an_imported_base_is_never_a_templates(host: Host, state: Path) -> None:
    await made_checkpoint(host)
    parcel = await sent(host, "here", Cargo.WITH_BASE)
    engine = FakeEngine()
    async with elsewhere(state, engine) as other:
        there = await received(other, parcel)
        await add_template(other)
        assert engine.boots == 1
        assert other.catalogue.status(IMAGE).snapshot != there.base_id


async def test_without_its_base_a_checkpoint_is_refused_in_words(host: Host, state: Path) -> None:
    await made_checkpoint(host)
    parcel = await sent(host, "here", Cargo.DELTA)
    async with elsewhere(state, FakeEngine()) as other:
        with pytest.raises(VmpoolError, match=f"of template '{IMAGE}' and image") as raised:
            await received(other, parcel)
        assert raised.value.error_code == "base_missing"
        assert kept_by(other) == (set(), set(), set())


async def test_a_base_needs_its_image(host: Host, state: Path) -> None:
    await made_checkpoint(host)
    parcel = await sent(host, "here", Cargo.WITH_BASE)
    async with elsewhere(state, FakeEngine()) as other:
        shutil.rmtree(other.settings.state / "images")
        assert await refusal(other, parcel) == "image_not_found"


async def test_a_base_of_another_qemu_is_refused(host: Host, state: Path) -> None:
    await made_checkpoint(host)
    parcel = await sent(host, "here", Cargo.WITH_BASE)
    async with elsewhere(state, FakeEngine(version="11.0.0")) as other:
        assert await refusal(other, parcel) == "snapshot_unfit"
    shutil.rmtree(state.with_name(f"{state.name}-b"))
    engine = FakeEngine()
    engine.make = "second"
    async with elsewhere(state, engine) as other:
        assert await refusal(other, parcel) == "snapshot_unfit"


async def test_an_import_that_is_cancelled_leaves_nothing(host: Host, state: Path) -> None:
    await made_checkpoint(host)
    parcel = await sent(host, "here", Cargo.WITH_BASE)
    asked = asyncio.Event()

    async def stalling() -> AsyncIterator[bytes]:
        yield parcel[:-20]
        asked.set()
        await asyncio.Event().wait()

    async with elsewhere(state, FakeEngine()) as other:
        coming = other.import_checkpoint(stalling(), owner=OWNER, name=None)
        task = asyncio.create_task(coming)
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert kept_by(other) == (set(), set(), set())
        assert (await received(other, parcel)).name == "here"


async def test_a_checkpoint_stays_while_it_is_exported(host: Host) -> None:
    kept = await made_checkpoint(host)
    parts = host.export_checkpoint(kept.id, owner=OWNER, cargo=Cargo.WITH_BASE)
    await anext(parts)
    with pytest.raises(VmpoolError) as raised:
        await host.remove_checkpoint(kept.id, owner=OWNER)
    assert raised.value.error_code == "checkpoint_in_use"
    await parts.aclose()
    await host.remove_checkpoint(kept.id, owner=OWNER)


async def test_another_owners_checkpoint_is_not_exported(host: Host) -> None:
    kept = await made_checkpoint(host)
    with pytest.raises(VmpoolError) as raised:
        host.export_checkpoint(kept.id, owner="somebody", cargo=Cargo.DELTA)
    assert raised.value.error_code == "checkpoint_not_found"
