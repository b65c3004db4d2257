"""A checkpoint goes from host to host as one file, whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import struct
from typing import TYPE_CHECKING

import pytest

from tests import small_disk
from tests.api.conftest import IMAGE
from tests.fake_host import OWNER, add_template, opened, wanted
from tests.fakes import FakeEngine
from tests.parcels import entries, packed, pieces, said_otherwise
from vmpool import digest, disk
from vmpool.errors import VmpoolError
from vmpool.model import Code, Exited
from vmpool.shipping import Cargo
from vmpool.trust import HostKey, Keyring, Purpose

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from vmpool.host import Host
    from vmpool.vault import Checkpoint


async def sent(host: Host, checkpoint: str, cargo: Cargo) -> bytes:
    """Return an exported checkpoint."""
    parts = host.export_checkpoint(checkpoint, owner=OWNER, cargo=cargo)
    return b"".join([part async for part in parts])


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


DISK_BYTES = 64 << 20

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
    keyring, home = Keyring.open(other), HostKey.load(state / "host-key")
    assert home is not None
    keyring.trust(home.public, "home")
    async with opened(other, engine) as host:
        yield host


def signer(host: Host) -> Callable[[bytes], bytes]:
    """Return what signs parcels as a host does."""
    own = Keyring.open(host.settings.state).own
    return lambda document: own.sign(Purpose.PARCEL, document)


async def test_a_parcel_of_a_host_that_is_not_trusted_is_refused(host: Host, state: Path) -> None:
    await made_checkpoint(host)
    parcel = await sent(host, "here", Cargo.WITH_BASE)
    home = Keyring.open(state).own.public
    async with elsewhere(state, FakeEngine()) as other:
        keyring = Keyring.open(other.settings.state)
        keyring.distrust(home)
        with pytest.raises(VmpoolError) as raised:
            await received(other, parcel)
        assert raised.value.error_code == "snapshot_untrusted"
        assert f"vmpool key trust {home}" in raised.value.remedy
        assert kept_by(other) == (set(), set(), set())
        once = other.import_checkpoint(
            pieces(parcel), owner=OWNER, name="once", believing=str(home)
        )
        assert (await once).name == "once"
        assert await refusal(other, parcel, "again") == "snapshot_untrusted"
        keyring.trust(home, "home")
        await received(other, parcel, "again")


async def test_a_parcel_that_says_something_else_than_was_signed_is_refused(host: Host) -> None:
    await made_checkpoint(host)
    parcel = await sent(host, "here", Cargo.DELTA)
    (signed, proof), *rest = entries(parcel)
    changed = said_otherwise(parcel, lambda said: said["state"].update({"env": {}}))
    own = packed([(signed, proof), *entries(changed)[1:]])
    assert await refusal(host, own, "x") == "snapshot_untrusted"
    assert await refusal(host, changed, "x") == "snapshot_untrusted"
    assert await refusal(host, packed(rest), "x") == "parcel_unfit"
    for_another = Keyring.open(host.settings.state).own.sign(Purpose.SNAPSHOT, rest[0][1])
    signed.size = len(for_another)
    assert await refusal(host, packed([(signed, for_another), *rest]), "x") == "snapshot_untrusted"


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
        Keyring.open(state).trust(Keyring.open(other.settings.state).own.public, "elsewhere")
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


@pytest.mark.parametrize(("folder", "name"), [("base", "memory"), ("checkpoint", "device-state")])
async def test_a_file_that_does_not_match_its_digest_is_refused(
    host: Host, state: Path, folder: str, name: str
) -> None:
    await made_checkpoint(host)
    parcel = await sent(host, "here", Cargo.WITH_BASE)
    files = entries(parcel)
    for number, (entry, content) in enumerate(files):
        if entry.name == f"{folder}/{name}":
            files[number] = (entry, bytes([content[0] ^ 1]) + content[1:])
    async with elsewhere(state, FakeEngine()) as other:
        assert await refusal(other, packed(files)) == "parcel_damaged"


async def test_a_layer_that_leads_to_another_file_is_refused(host: Host, tmp_path: Path) -> None:
    await add_template(host, "disk", disk_bytes=DISK_BYTES)
    sandbox = await host.create(wanted(template="disk"), owner=OWNER)
    await host.checkpoint(sandbox.id, owner=OWNER, name="here")
    parcel = await sent(host, "here", Cargo.DELTA)
    with (tmp_path / "layer").open("wb") as file:
        disk.write_overlay(file.fileno(), DISK_BYTES)
    plain = (tmp_path / "layer").read_bytes()
    sign = signer(host)
    await received(host, with_layer(parcel, plain, tmp_path, sign), "plain")
    name = b"/etc/shadow"
    behind = struct.pack(">4sIQI", b"QFI\xfb", 3, 512, len(name)) + plain[20:512] + name
    evil = with_layer(parcel, behind + plain[len(behind) :], tmp_path, sign)
    assert await refusal(host, evil, "evil") == "parcel_damaged"


def with_layer(
    parcel: bytes, layer: bytes, directory: Path, sign: Callable[[bytes], bytes]
) -> bytes:
    """Return a parcel whose checkpoint has another disk layer, and says so."""
    files = entries(parcel)
    (at,) = (n for n, (entry, _) in enumerate(files) if entry.name == "checkpoint/layer-00")
    files[at][0].size = len(layer)
    files[at] = (files[at][0], layer)
    record = {"size_bytes": len(layer), "digest": digest_of(layer, directory)}
    return said_otherwise(
        packed(files),
        lambda said: said["checkpoint"]["files"].update({"layer-00": record}),
        sign=sign,
    )


def digest_of(content: bytes, directory: Path) -> str:
    """Return the digest that a snapshot's manifest has of a file."""
    (directory / "file").write_bytes(content)
    found = digest.digest(directory / "file")
    (directory / "file").unlink()
    return found


async def test_a_machine_that_this_host_would_not_make_is_refused(host: Host, state: Path) -> None:
    await made_checkpoint(host)
    parcel = await sent(host, "here", Cargo.WITH_BASE)

    def change(said: dict[str, dict[str, dict[str, object]]]) -> None:
        for manifest in ("base", "checkpoint"):
            said[manifest]["spec"]["shape"] = "another"

    async with elsewhere(state, FakeEngine()) as other:
        assert (
            await refusal(other, said_otherwise(parcel, change, sign=signer(host)))
            == "snapshot_unfit"
        )


async def test_the_root_of_an_imported_base_is_the_image_that_is_here(
    host: Host, state: Path
) -> None:
    await made_checkpoint(host)
    parcel = await sent(host, "here", Cargo.WITH_BASE)

    def change(said: dict[str, dict[str, dict[str, object]]]) -> None:
        said["base"]["spec"]["root"] = "/etc/shadow"

    async with elsewhere(state, FakeEngine()) as other:
        there = await received(other, said_otherwise(parcel, change, sign=signer(host)))
        found = (await other.catalogue.lineage(there.base_id)).snapshot.spec.root
        assert found == other.images.load(IMAGE).root


async def test_more_than_an_owner_may_keep_is_not_imported(host: Host, state: Path) -> None:
    await made_checkpoint(host)
    parcel = await sent(host, "here", Cargo.WITH_BASE)
    async with elsewhere(state, FakeEngine()) as full:
        await full.store.tenants.change(OWNER, name=None, quota={"checkpoints": 0})
        assert await refusal(full, parcel) == "quota_exceeded"


@pytest.mark.parametrize("folder", FOLDERS)
async def test_a_full_disk_leaves_nothing(host: Host, state: Path, folder: str) -> None:
    await made_checkpoint(host)
    parcel = await sent(host, "here", Cargo.WITH_BASE)
    async with elsewhere(state, FakeEngine()) as other:
        with small_disk.mounted(other.settings.state / folder, "size=4k"):
            assert await refusal(other, parcel) == "host_disk_full"
        assert (await received(other, parcel)).name == "here"


async def test_an_imported_base_that_a_crash_left_goes_with_the_next_start(
    host: Host, state: Path
) -> None:
    await made_checkpoint(host)
    parcel = await sent(host, "here", Cargo.WITH_BASE)
    async with elsewhere(state, FakeEngine()) as other:
        there = await received(other, parcel)
        left = other.settings.state
    async with opened(left, FakeEngine()) as again:
        assert kept_by(again)[0] == {there.base_id}
        await again.store.checkpoints.remove(there.id)
    async with opened(left, FakeEngine()) as again:
        assert kept_by(again) == (set(), set(), set())


async def test_an_import_is_in_the_audit_log_under_the_id_that_it_made(host: Host) -> None:
    await made_checkpoint(host)
    parcel = await sent(host, "here", Cargo.DELTA)
    there = await received(host, parcel, "there")
    await refusal(host, parcel[:-1], "half")

    await host.close()  # waits for what is written behind an answer
    log = await host.store.audit.entries(100)
    failed, made = [entry for entry in log if entry.action == "checkpoint.import"]
    assert (made.subject, made.outcome) == (there.id, "ok")
    assert failed.outcome == "parcel_damaged"
