"""Custody: what is checked before it is used, and how often."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.conftest import IMAGE
from tests.fake_host import OWNER, add_template, opened, wanted
from vmpool import snapshot
from vmpool.errors import ImageError, PoolTimeoutError, SnapshotError, VmpoolError
from vmpool.policy import Limits
from vmpool.trust import Custody, HostKey, Keyring, Purpose
from vmpool.vouching import Vouching

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.fakes import FakeEngine
    from vmpool.host import Host
    from vmpool.image import Image, Library
    from vmpool.snapshot import Snapshot


@pytest.fixture
def custody(tmp_path: Path) -> Custody:
    return Custody(Keyring.open(tmp_path))


@pytest.fixture
def kept(base: Snapshot, custody: Custody, tmp_path: Path) -> Snapshot:
    """A snapshot that this host has published."""
    partial = snapshot.begin(tmp_path)
    for name in base.manifest.files:
        shutil.copy(base.directory / name, partial / name)
    return custody.publish(partial, base.manifest, tmp_path)


def overwrite(path: Path) -> None:
    """Change a byte, and have the file look as old as it was."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def refused(do: Callable[[], object]) -> str:
    with pytest.raises(SnapshotError) as raised:
        do()
    return raised.value.error_code


def test_what_was_published_is_not_read_again(
    kept: Snapshot, custody: Custody, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(snapshot.Snapshot, "verify_file", lambda _, name: read.append(name))
    custody.load_verified(kept.directory)
    assert not read
    Custody(custody.keyring).load_verified(kept.directory)
    assert sorted(read) == sorted(kept.manifest.files)


@pytest.mark.parametrize("name", ["memory", "device-state"])
def test_a_file_that_was_changed_is_found_out(kept: Snapshot, custody: Custody, name: str) -> None:
    files = [kept.directory / each for each in kept.manifest.files]
    assert custody.is_intact(files)
    overwrite(kept.directory / name)
    assert not custody.is_intact(files)
    assert refused(lambda: custody.load_verified(kept.directory)) == "snapshot_damaged"


def test_a_file_that_was_only_touched_is_read_once_more(kept: Snapshot, custody: Custody) -> None:
    (kept.directory / "memory").touch()
    assert not custody.is_intact([kept.memory])
    custody.load_verified(kept.directory)
    assert custody.is_intact([kept.memory])


def test_a_snapshot_is_refused_unless_it_is_signed_as_it_is(
    kept: Snapshot, custody: Custody
) -> None:
    manifest, proof = kept.directory / "manifest.json", kept.directory / "signature.json"
    manifest.chmod(0o644)
    said = manifest.read_bytes()
    manifest.write_bytes(said.replace(b'"format": 2', b'"format":  2'))
    assert refused(lambda: custody.load(kept.directory)) == "snapshot_untrusted"
    manifest.write_bytes(said)
    custody.load(kept.directory)
    other = HostKey.fresh()
    proof.unlink()
    assert refused(lambda: custody.load(kept.directory)) == "snapshot_untrusted"
    proof.write_bytes(other.sign(Purpose.SNAPSHOT, said))
    assert refused(lambda: custody.load(kept.directory)) == "snapshot_untrusted"
    custody.keyring.trust(other.public, "")
    custody.load(kept.directory)


def test_a_snapshot_under_anothers_name_is_refused(kept: Snapshot, custody: Custody) -> None:
    moved = kept.directory.rename(kept.directory.with_name("another"))
    assert refused(lambda: custody.load(moved)) == "snapshot_damaged"


def test_what_was_made_before_the_key_is_signed_if_it_is_whole(
    kept: Snapshot, custody: Custody
) -> None:
    (kept.directory / "signature.json").unlink()
    damaged = kept.directory.with_name("damaged")
    shutil.copytree(kept.directory, damaged)
    overwrite(damaged / "memory")
    (why,) = custody.adopt([damaged, kept.directory])
    assert "digest" in why
    custody.load(kept.directory)
    assert refused(lambda: custody.load(damaged)) == "snapshot_untrusted"


def test_what_is_signed_by_another_stays_so(kept: Snapshot, custody: Custody) -> None:
    other = HostKey.fresh().sign(Purpose.SNAPSHOT, kept.document)
    (kept.directory / "signature.json").unlink()
    (kept.directory / "signature.json").write_bytes(other)
    assert custody.adopt([kept.directory]) == []
    assert refused(lambda: custody.load(kept.directory)) == "snapshot_untrusted"


# On a host.


async def reason(host: Host) -> str:
    """Return why no clone comes, as the pool has it."""
    with pytest.raises(PoolTimeoutError) as raised:
        await host.create(wanted(wait=5.0), owner=OWNER)
    assert isinstance(raised.value.__cause__, VmpoolError)
    return raised.value.__cause__.error_code


async def test_no_clone_is_made_of_a_template_that_was_changed(host: Host) -> None:
    directory = host.settings.state / "snapshots"
    (found,) = directory.iterdir()
    await host.kill((await host.create(wanted(), owner=OWNER)).id, owner=OWNER)
    overwrite(found / "memory")
    assert await reason(host) == "snapshot_damaged"


async def test_no_clone_is_made_of_an_image_that_was_changed(host: Host, state: Path) -> None:
    (root,) = (state / "images").glob("*/root.erofs")
    overwrite(root)
    assert await reason(host) == "image_damaged"


class Unlucky:
    """A library whose image is changed just when it has been read."""

    def __init__(self, library: Library) -> None:
        self._library = library

    async def verify(self, image: Image) -> None:
        await self._library.verify(image)
        overwrite(image.root)


async def test_an_image_that_is_changed_while_it_is_read_is_read_again(
    host: Host, custody: Custody
) -> None:
    image = host.images.load(IMAGE)
    unlucky: Any = Unlucky(host.images)
    await Vouching(unlucky, custody).image(image)
    with pytest.raises(ImageError) as raised:
        await Vouching(host.images, custody).image(image)
    assert raised.value.error_code == "image_damaged"


async def test_a_paused_sandbox_whose_memory_was_changed_stays_paused(host: Host) -> None:
    sandbox = await host.create(wanted(), owner=OWNER)
    await host.pause(sandbox.id, owner=OWNER)
    (pages,) = (host.settings.state / "checkpoints").glob("*/pages")
    overwrite(pages)
    with pytest.raises(SnapshotError) as raised:
        await host.resume(sandbox.id, owner=OWNER, timeout=None)
    assert raised.value.error_code == "snapshot_damaged"
    overwrite(pages)  # as it was
    await host.resume(sandbox.id, owner=OWNER, timeout=None)


async def test_a_host_without_a_key_signs_what_it_had_made(state: Path, engine: FakeEngine) -> None:
    async with opened(state, engine) as host:
        await add_template(host, limits=Limits(ready=0, total=4))
        sandbox = await host.create(wanted(), owner=OWNER)
        kept = await host.checkpoint(sandbox.id, owner=OWNER, name="kept")
    (state / "host-key").unlink()
    for proof in state.glob("*/*/signature.json"):
        proof.unlink()
    boots = engine.boots
    said: list[str] = []
    async with opened(state, engine, progress=said.append) as host:
        await host.catalogue.settled(IMAGE)
        again = await host.create(wanted(template="", checkpoint=kept.id), owner=OWNER)
        assert again.id
    assert engine.boots == boots
    assert any("made a key for this host" in each for each in said)
    assert len(list(state.glob("*/*/signature.json"))) == 2


async def test_a_template_that_somebody_else_signed_is_made_again(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine) as host:
        await add_template(host)
        name = host.catalogue.status(IMAGE).snapshot
    assert name is not None
    boots, proof = engine.boots, state / "snapshots" / name / "signature.json"
    document = (state / "snapshots" / name / "manifest.json").read_bytes()
    proof.unlink()
    proof.write_bytes(HostKey.fresh().sign(Purpose.SNAPSHOT, document))
    async with opened(state, engine) as host:
        await host.catalogue.settled(IMAGE)
        await host.create(wanted(), owner=OWNER)
    assert engine.boots == boots + 1
