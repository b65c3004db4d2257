"""Snapshots: whole or not at all, whatever a crash leaves; damage and strangers are refused."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from vmpool import fitness, snapshot
from vmpool.errors import ConflictError, SnapshotError
from vmpool.model import MIB, Accelerator, MachineSpec, Processor, Transport

if TYPE_CHECKING:
    from vmpool.snapshot import Manifest, Snapshot

SPEC = MachineSpec(
    root=Path("../../images/abc/root.erofs"),
    memory_bytes=32 * MIB,
    accelerator=Accelerator.TCG,
    transport=Transport.SERIAL,
    qemu_version="10.0.2",
)
PROCESSOR = Processor(vendor="AuthenticAMD", features=frozenset({"avx2", "bmi2", "sse2"}))


def written(parent: Path, name: str = "one", spec: MachineSpec = SPEC) -> tuple[Path, Manifest]:
    parent.mkdir(exist_ok=True)
    partial = snapshot.begin(parent)
    for file in ("memory", "device-state", *(["disk"] if spec.disk_bytes else [])):
        (partial / file).write_bytes(os.urandom(5000))
    return partial, snapshot.describe(
        partial, id=name, image="abc", spec=spec, processor=PROCESSOR, created_ns=7
    )


def published(parent: Path, name: str = "one", spec: MachineSpec = SPEC) -> Snapshot:
    partial, manifest = written(parent, name, spec)
    return snapshot.publish(partial, manifest, parent)


def test_what_is_published_is_loaded_again(tmp_path: Path) -> None:
    first = published(tmp_path / "snapshots")
    again = snapshot.load(first.directory)
    assert again == first
    again.verify()
    assert again.spec.root == tmp_path / "images/abc/root.erofs"
    assert again.disk is None


def test_a_root_outside_the_state_directory_stays_absolute(tmp_path: Path) -> None:
    spec = replace(SPEC, root=Path("/elsewhere/root"), disk_bytes=1 * MIB)
    found = snapshot.load(published(tmp_path, spec=spec).directory)
    assert found.spec.root == Path("/elsewhere/root")
    assert found.disk == found.directory / "disk"


def checkpointed(template: Snapshot, files: tuple[str, ...]) -> Snapshot:
    parent = template.directory.parent
    partial = snapshot.begin(parent)
    for file in files:
        (partial / file).write_bytes(os.urandom(100))
    manifest = snapshot.describe(
        partial,
        id="child",
        image="abc",
        spec=template.manifest.spec,
        processor=PROCESSOR,
        created_ns=8,
        base=template.as_base,
    )
    return snapshot.publish(partial, manifest, parent)


def test_a_checkpoint_needs_its_base_and_no_memory_of_its_own(tmp_path: Path) -> None:
    template = published(tmp_path)
    found = snapshot.load(checkpointed(template, ("device-state", "pages")).directory)
    found.verify()
    found.require_loadable_over(template)
    assert found.manifest.base == template.as_base
    assert found.layers == ()
    template.remove()
    remade = published(tmp_path)  # under the same name, with other memory
    with pytest.raises(SnapshotError) as caught:
        found.require_loadable_over(remade)
    assert caught.value.error_code == "snapshot_unfit"


def test_a_checkpoint_of_a_machine_with_a_disk_has_layers_in_their_order(tmp_path: Path) -> None:
    template = published(tmp_path, spec=replace(SPEC, disk_bytes=1 * MIB))
    names = tuple(snapshot.layer_name(number) for number in (2, 0, 10, 1))
    found = snapshot.load(checkpointed(template, ("device-state", "pages", *names)).directory)
    assert [path.name for path in found.layers] == ["layer-00", "layer-01", "layer-02", "layer-10"]
    found.remove()
    lacking = checkpointed(template, ("device-state", "pages"))
    with pytest.raises(SnapshotError, match="layer-00"):
        snapshot.load(lacking.directory)


def test_published_files_cannot_be_written(tmp_path: Path) -> None:
    for path in published(tmp_path).directory.iterdir():
        assert path.stat().st_mode & 0o777 == 0o444


def test_a_published_snapshot_is_never_replaced(tmp_path: Path) -> None:
    first = published(tmp_path)
    partial, manifest = written(tmp_path)
    with pytest.raises(ConflictError) as caught:
        snapshot.publish(partial, manifest, tmp_path)
    assert caught.value.error_code == "snapshot_exists"
    assert not partial.exists()
    snapshot.load(first.directory).verify()


# Crashes: whatever step a process dies at, there is a whole snapshot or none.


class Crash(BaseException):
    """What a power cut looks like to the code that it interrupts."""


@pytest.mark.parametrize("step", range(8))
def test_a_crash_while_publishing_leaves_it_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    partial, manifest = written(tmp_path)
    left = step

    def crashing(function: object) -> object:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal left
            if left == 0:
                raise Crash
            left -= 1
            return function(*args, **kwargs)  # type: ignore[operator]

        return call

    monkeypatch.setattr(os, "fsync", crashing(os.fsync))
    monkeypatch.setattr(Path, "rename", crashing(Path.rename))
    monkeypatch.setattr(Path, "write_bytes", crashing(Path.write_bytes))
    try:
        snapshot.publish(partial, manifest, tmp_path)
    except Crash:
        swept = snapshot.sweep(tmp_path)
        if (tmp_path / "one").exists():
            snapshot.load(tmp_path / "one").verify()
            assert swept == ()
        else:
            assert swept == (partial,)
    assert [path.name for path in tmp_path.iterdir()] in ([], ["one"])


def test_files_are_durable_before_they_have_their_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial, manifest = written(tmp_path)
    order: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(descriptor: int) -> None:
        order.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        real_sync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        order.append("rename")
        return real_rename(path, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    snapshot.publish(partial, manifest, tmp_path)
    assert set(order[:3]) == {"memory", "device-state", "manifest.json"}
    assert order[3:] == [partial.name, "rename", tmp_path.name]


def test_an_interrupted_removal_is_swept(tmp_path: Path) -> None:
    gone, kept = published(tmp_path, "gone"), published(tmp_path, "kept")
    gone.directory.rename(tmp_path / f"{snapshot.PARTIAL}x")
    assert [path.name for path in snapshot.sweep(tmp_path)] == [".partial-x"]
    kept.verify()
    kept.remove()
    kept.remove()
    assert not list(tmp_path.iterdir())


# Damage: said in words, with the file that is damaged.


@pytest.mark.parametrize("name", ["memory", "device-state", "disk"])
def test_a_flipped_byte_is_found_and_named(tmp_path: Path, name: str) -> None:
    found = published(tmp_path, spec=replace(SPEC, disk_bytes=MIB))
    path = found.directory / name
    data = bytearray(path.read_bytes())
    data[1234] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    with pytest.raises(SnapshotError, match=name) as caught:
        snapshot.load(found.directory).verify()
    assert caught.value.error_code == "snapshot_damaged"
    assert str(tmp_path) not in str(caught.value)  # a tenant may read it


BLOCK = 64 << 10


def sparse(path: Path, size_bytes: int, stored: dict[int, bytes]) -> Path:
    """Write a file that is a hole but for what is stored at some offsets."""
    with path.open("xb") as file:
        file.truncate(size_bytes)
        for offset, data in stored.items():
            os.pwrite(file.fileno(), data, offset)
    return path


def digest_of(path: Path) -> str:
    """Return the digest that a manifest would have for a file."""
    directory = path.with_name(f"{path.name}.directory")
    directory.mkdir()
    (directory / "memory").hardlink_to(path)
    described = snapshot.describe(
        directory, id="x", image="x", spec=SPEC, processor=PROCESSOR, created_ns=0
    )
    return described.files["memory"].digest


def test_holes_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = os.pread

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        read.append(offset)
        return real(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    size = 1 << 40
    digest_of(sparse(tmp_path / "memory", size, {5 * BLOCK + 9: b"x", size // 2: b"y"}))
    assert read == [5 * BLOCK, size // 2, size - BLOCK]


@given(
    size=st.integers(0, 4 * BLOCK),
    stored=st.dictionaries(st.integers(0, 4 * BLOCK - 1), st.integers(1, 255), max_size=6),
)
def test_a_digest_is_of_what_is_read_and_not_of_what_is_stored(
    tmp_path_factory: pytest.TempPathFactory, size: int, stored: dict[int, int]
) -> None:
    directory = tmp_path_factory.mktemp("digest")
    bytes_of = {offset: bytes([value]) for offset, value in stored.items() if offset < size}
    with_holes = sparse(directory / "holes", size, bytes_of)
    (directory / "full").write_bytes(with_holes.read_bytes())
    assert digest_of(with_holes) == digest_of(directory / "full")


@pytest.mark.parametrize(
    ("size", "stored"),
    [
        (4 * BLOCK, {BLOCK: b"x"}),
        (4 * BLOCK, {BLOCK: b"x", 3 * BLOCK + 1: b"\1"}),
        (4 * BLOCK, {2 * BLOCK: b"x"}),
        (4 * BLOCK, {BLOCK + 1: b"x"}),
        (4 * BLOCK, {BLOCK: b"y"}),
        (4 * BLOCK, {4 * BLOCK - 1: b"x"}),
        (4 * BLOCK, {}),
        (4 * BLOCK - 1, {}),
        (4 * BLOCK - 1, {BLOCK: b"x"}),
        (3 * BLOCK, {}),
    ],
)
def test_no_two_different_files_have_the_same_digest(
    tmp_path: Path, size: int, stored: dict[int, bytes]
) -> None:
    """A byte in a hole, a block lost to a hole or gone elsewhere, an end cut off or added."""
    sound = digest_of(sparse(tmp_path / "sound", 4 * BLOCK, {BLOCK: b"x", 3 * BLOCK: b"\1"}))
    assert digest_of(sparse(tmp_path / "memory", size, stored)) != sound


@pytest.mark.parametrize("name", ["memory", "device-state"])
def test_a_file_cut_short_is_refused_at_load(tmp_path: Path, name: str) -> None:
    found = published(tmp_path)
    (found.directory / name).chmod(0o600)
    os.truncate(found.directory / name, 4999)
    with pytest.raises(SnapshotError, match=name) as caught:
        snapshot.load(found.directory)
    assert caught.value.error_code == "snapshot_damaged"
    assert str(tmp_path) not in str(caught.value)


def test_a_link_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    found = published(tmp_path)
    (found.directory / "memory").rename(tmp_path / "elsewhere")
    (found.directory / "memory").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SnapshotError, match="memory"):
        snapshot.load(found.directory)


def _rewritten(found: Snapshot, **changes: object) -> Path:
    path = found.directory / "manifest.json"
    data = json.loads(path.read_bytes()) | changes
    path.chmod(0o600)
    path.write_text(json.dumps(data))
    return found.directory


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"format": 3}, "snapshot_unfit"),
        ({"format": 3, "spec": "of another kind"}, "snapshot_unfit"),
        ({"processor": None}, "snapshot_damaged"),
        ({"processor": {"vendor": "AuthenticAMD", "features": [7]}}, "snapshot_damaged"),
        ({"format": "x"}, "snapshot_damaged"),
        ({"files": {}}, "snapshot_damaged"),
        ({"files": {"../memory": {"size_bytes": 1, "digest": ""}}}, "snapshot_damaged"),
        ({"spec": {"root": 1}}, "snapshot_damaged"),
    ],
)
def test_a_manifest_that_is_none_is_refused(
    tmp_path: Path, changes: dict[str, object], code: str
) -> None:
    with pytest.raises(SnapshotError) as caught:
        snapshot.load(_rewritten(published(tmp_path), **changes))
    assert caught.value.error_code == code


def test_a_manifest_from_before_processors_were_recorded_is_refused_in_words(
    tmp_path: Path,
) -> None:
    found = published(tmp_path)
    path = _rewritten(found, format=1) / "manifest.json"
    data = json.loads(path.read_bytes())
    del data["processor"]
    path.write_text(json.dumps(data))
    with pytest.raises(SnapshotError, match=r"format 1, this vmpool reads 2") as caught:
        snapshot.load(found.directory)
    assert (caught.value.error_code, caught.value.remedy) == (
        "snapshot_unfit",
        "make the template again",
    )


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[]", b" " * (1 << 20) + b"{}"])
def test_bytes_that_are_no_manifest_are_refused(tmp_path: Path, data: bytes) -> None:
    found = published(tmp_path)
    (found.directory / "manifest.json").chmod(0o600)
    (found.directory / "manifest.json").write_bytes(data)
    with pytest.raises(SnapshotError) as caught:
        snapshot.load(found.directory)
    assert caught.value.error_code == "snapshot_damaged"


def test_no_snapshot_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(SnapshotError) as caught:
        snapshot.load(tmp_path / "none")
    assert caught.value.error_code == "snapshot_missing"


# Fit: refused before a hypervisor is started.


def test_a_snapshot_fits_the_host_that_made_it(tmp_path: Path) -> None:
    fitness.require_fit(
        published(tmp_path),
        version="10.0.2",
        processors={Accelerator.TCG: PROCESSOR},
        transports={Transport.SERIAL},
    )


@pytest.mark.parametrize(
    ("version", "accelerator", "transport", "words"),
    [
        ("10.0.3", Accelerator.TCG, Transport.SERIAL, r"10\.0\.2.*10\.0\.3"),
        ("10.0.2", Accelerator.KVM, Transport.SERIAL, "'tcg'"),
        ("10.0.2", Accelerator.TCG, Transport.VSOCK, "'virtio-serial'"),
    ],
)
def test_a_snapshot_from_another_kind_of_host_is_refused_in_words(
    tmp_path: Path, version: str, accelerator: Accelerator, transport: Transport, words: str
) -> None:
    with pytest.raises(SnapshotError, match=words) as caught:
        fitness.require_fit(
            published(tmp_path),
            version=version,
            processors={accelerator: PROCESSOR},
            transports={transport},
        )
    assert caught.value.error_code == "snapshot_unfit"
    assert caught.value.remedy


FEATURES = st.frozensets(st.sampled_from(["adx", "aes", "avx2", "bmi2", "erms", "sse2"]))


@given(saved=FEATURES, offered=FEATURES)
def test_a_snapshot_fits_exactly_where_no_feature_is_lacking_and_names_those_that_are(
    tmp_path_factory: pytest.TempPathFactory, saved: frozenset[str], offered: frozenset[str]
) -> None:
    found = published(tmp_path_factory.mktemp("fit"))
    manifest = structs.replace(found.manifest, processor=replace(PROCESSOR, features=saved))
    host = replace(PROCESSOR, features=offered)
    refused = pytest.raises(SnapshotError) if saved - offered else contextlib.nullcontext()
    with refused as caught:
        fitness.require_fit(
            replace(found, manifest=manifest),
            version="10.0.2",
            processors={Accelerator.TCG: host},
            transports={Transport.SERIAL},
        )
    if caught is not None:
        assert caught.value.error_code == "snapshot_processor_unfit"
        assert "cpu_model" in caught.value.remedy
        assert caught.value.message.endswith(f": {', '.join(sorted(saved - offered))}")


def test_a_snapshot_from_another_vendors_processor_is_refused_whatever_its_features(
    tmp_path: Path,
) -> None:
    with pytest.raises(SnapshotError, match=r"'AuthenticAMD'.*'GenuineIntel'") as caught:
        fitness.require_fit(
            published(tmp_path),
            version="10.0.2",
            processors={Accelerator.TCG: replace(PROCESSOR, vendor="GenuineIntel")},
            transports={Transport.SERIAL},
        )
    assert caught.value.error_code == "snapshot_processor_unfit"


def test_a_manifest_lists_features_in_their_order(tmp_path: Path) -> None:
    written_down = json.loads((published(tmp_path).directory / "manifest.json").read_bytes())
    assert written_down["processor"]["features"] == ["avx2", "bmi2", "sse2"]
