"""A parcel is read to what it was made of, or not at all."""

from __future__ import annotations

import asyncio
import os
import tarfile
import tracemalloc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.parcels import Entries, entries, packed, pieces, said_otherwise, squeezed, unbelieved
from vmpool import snapshot
from vmpool.errors import InvalidRequestError, SnapshotError, VmpoolError
from vmpool.model import MIB, Accelerator, MachineSpec, Processor, Transport
from vmpool.parcel import Envelope, State, Unpacking, pack
from vmpool.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT = 64 * MIB
MEMORY_BYTES = 8 * MIB
SPEC = MachineSpec(
    root=Path("../../images/x/root.erofs"),
    memory_bytes=MEMORY_BYTES,
    accelerator=Accelerator.TCG,
    transport=Transport.SERIAL,
    disk_bytes=MIB,
    qemu_version="10.0.2",
)


def described(
    directory: Path, files: dict[str, bytes], base: snapshot.Base | None = None
) -> Snapshot:
    """Return a snapshot of files in a directory, zeros at their end as a hole."""
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content.rstrip(b"\0"))
        os.truncate(directory / name, len(content))
    manifest = snapshot.describe(
        directory,
        id=directory.name,
        image="a" * 64,
        spec=SPEC,
        processor=Processor(vendor="AuthenticAMD", features=frozenset({"sse2"})),
        created_ns=1,
        base=base,
    )
    return Snapshot(directory=directory, manifest=manifest)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    memory = os.urandom(300_000) + bytes(MEMORY_BYTES - 300_000)
    files = {"memory": memory, "device-state": b"devices", "disk": bytes(MIB)}
    return described(tmp_path_factory.mktemp("base") / "0123456789abcdef0123", files)


@pytest.fixture(scope="module")
def checkpoint(base: Snapshot, tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    own = {"device-state": b"other devices", "layer-00": os.urandom(70_000)}
    directory = tmp_path_factory.mktemp("checkpoint") / "cpabc"
    kinds = snapshot.wrong_files(described(directory, own, base.as_base).manifest)
    for name in kinds:  # whatever else a checkpoint has
        (directory / name).write_bytes(b"more")
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    return described(directory.with_name("cpwhole"), files, base.as_base)


@pytest.fixture(scope="module")
def parcel(base: Snapshot, checkpoint: Snapshot) -> bytes:
    return b"".join(pack(envelope_of(base, checkpoint), checkpoint, base, sign=unbelieved))


def envelope_of(base: Snapshot, checkpoint: Snapshot) -> Envelope:
    state = State(
        name="here",
        sandbox_id="abc",
        template="python",
        key="0f" * 32,
        dirty_bytes=4096,
        saved_ns=5,
        env={"A": "1"},
    )
    return Envelope(checkpoint=checkpoint.manifest, base=base.manifest, with_base=True, state=state)


async def unpacked(parcel: bytes, into: Path, size_bytes: int = 5000) -> Envelope:
    """Read a parcel to its end."""
    reading = Unpacking(pieces(parcel, size_bytes), limit_bytes=LIMIT, require=lambda _, __: None)
    envelope = await reading.envelope()
    for name, manifest in (("base", envelope.base), ("checkpoint", envelope.checkpoint)):
        (into / name).mkdir(parents=True)
        await reading.files(name, manifest, into=into / name)
    await reading.end()
    return envelope


async def refusal(parcel: bytes, into: Path) -> tuple[str, str]:
    with pytest.raises(VmpoolError) as raised:
        await unpacked(parcel, into)
    return raised.value.error_code, raised.value.message


@pytest.mark.parametrize("size_bytes", [1000, 1 << 20])
async def test_what_comes_out_is_what_went_in(
    base: Snapshot, checkpoint: Snapshot, parcel: bytes, tmp_path: Path, size_bytes: int
) -> None:
    found = await unpacked(parcel, tmp_path, size_bytes)
    assert found == envelope_of(base, checkpoint)
    for name, made in (("base", base), ("checkpoint", checkpoint)):
        Snapshot(directory=tmp_path / name, manifest=made.manifest).verify()


async def test_holes_stay_holes(parcel: bytes, tmp_path: Path) -> None:
    await unpacked(parcel, tmp_path)
    memory, disk = (tmp_path / "base" / name for name in ("memory", "disk"))
    assert memory.stat().st_size == MEMORY_BYTES
    assert memory.stat().st_blocks * 512 < 400_000
    assert disk.stat().st_blocks == 0
    assert len(parcel) < 500_000


@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, -1])
async def test_one_that_breaks_off_is_refused(parcel: bytes, tmp_path: Path, kept: float) -> None:
    rest = parcel[: int(kept * len(parcel)) if kept == 0.5 else int(kept)]
    assert (await refusal(rest, tmp_path))[0] == "parcel_damaged"


@pytest.mark.parametrize("more", [b"x", b"\x28\xb5\x2f\xfd", squeezed(b"more")])
async def test_one_that_goes_on_is_refused(parcel: bytes, tmp_path: Path, more: bytes) -> None:
    assert (await refusal(parcel + more, tmp_path))[0] == "parcel_damaged"


@pytest.mark.parametrize("end", [b"", bytes(5000), bytes(512), b"x" * 1024])
async def test_an_archive_without_its_end_is_refused(
    parcel: bytes, tmp_path: Path, end: bytes
) -> None:
    assert (await refusal(packed(entries(parcel), end=end), tmp_path))[0] == "parcel_damaged"


@settings(max_examples=40)
@given(position=st.integers(min_value=0))
def test_one_flipped_bit_is_noticed_or_means_nothing(
    base: Snapshot, parcel: bytes, tmp_path_factory: pytest.TempPathFactory, position: int
) -> None:
    flipped = bytearray(parcel)
    flipped[position // 8 % len(parcel)] ^= 1 << position % 8
    into = tmp_path_factory.mktemp("flipped")
    try:
        found = asyncio.run(unpacked(bytes(flipped), into))
    except InvalidRequestError:
        return
    assert found.base == base.manifest
    for manifest in (found.base, found.checkpoint):
        name = "base" if manifest is found.base else "checkpoint"
        Snapshot(directory=into / name, manifest=manifest).verify()


def rename(entry: tarfile.TarInfo, name: str) -> None:
    entry.name = name


def link(entry: tarfile.TarInfo) -> None:
    entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, "/etc/shadow", 0


def swap(what: Entries) -> None:
    what[1], what[2] = what[2], what[1]


def stretch(what: Entries) -> None:
    what[1][0].size = 1 << 40


STRANGE: dict[str, Callable[[Entries], object]] = {
    "a path that climbs": lambda what: rename(what[1][0], "base/../../../etc/passwd"),
    "an absolute path": lambda what: rename(what[1][0], "/etc/passwd"),
    "a link": lambda what: link(what[1][0]),
    "another order": swap,
    "a file too few": lambda what: what.pop(),
    "a file too many": lambda what: what.append(what[-1]),
    "a file longer than said": stretch,
    "no envelope": lambda what: what.pop(1),
    "a file that was written before the envelope": lambda what: what.insert(0, what[2]),
}


@pytest.mark.parametrize("strange", STRANGE.values(), ids=STRANGE)
async def test_an_archive_that_is_not_what_it_says_is_refused(
    parcel: bytes, tmp_path: Path, strange: Callable[[Entries], object]
) -> None:
    what = entries(parcel)
    strange(what)
    assert (await refusal(packed(what), tmp_path / "in"))[0] == "parcel_damaged"
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert found <= {f"in/{name}" for name in ("base", "checkpoint")} | {
        f"in/{entry.name}" for entry, _ in entries(parcel)
    } | {"in"}


def put(*path: str, value: Any) -> Callable[[Any], None]:
    """Return what sets one member of an envelope."""

    def change(envelope: Any) -> None:
        *way, last = path
        for step in way:
            envelope = envelope[step]
        envelope[last] = value

    return change


FILE = {"size_bytes": 5, "digest": "0" * 64}
WRONG: dict[str, Callable[[Any], None]] = {
    "a file elsewhere": put("checkpoint", "files", "../../x", value=FILE),
    "a file of another kind": put("base", "files", "layer-00", value=FILE),
    "a hundred layers": put("checkpoint", "files", "layer-100", value=FILE),
    "no memory": lambda said: said["base"]["files"].pop("memory"),
    "no layer": lambda said: said["checkpoint"]["files"].pop("layer-00"),
    "another base": put("checkpoint", "base", "memory", value="1" * 64),
    "a base of a base": put("base", "base", value={"id": "x", "memory": "1" * 64}),
    "no base": put("checkpoint", "base", value=None),
    "another machine": put("checkpoint", "spec", "vcpus", value=7),
    "an image elsewhere": put("base", "image", value="../../../etc"),
    "a processor with options": put("base", "spec", "cpu_model", value="max,x=/etc/passwd"),
    "a negative size": put("base", "files", "disk", "size_bytes", value=-1),
    "a size that is none": put("base", "files", "disk", "size_bytes", value="5"),
    "a key that is none": put("state", "key", value="xyz"),
    "a sandbox that is a path": put("state", "sandbox_id", value="../x"),
    "a member too many": put("more", value=1),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
async def test_an_envelope_that_no_vmpool_writes_is_refused(
    parcel: bytes, tmp_path: Path, change: Callable[[Any], None]
) -> None:
    assert (await refusal(said_otherwise(parcel, change), tmp_path))[0] == "parcel_damaged"
    assert not list(tmp_path.iterdir())


async def test_one_of_another_format_says_so(parcel: bytes, tmp_path: Path) -> None:
    for path in (("format",), ("base", "format")):
        later = said_otherwise(parcel, put(*path, value=99))
        with pytest.raises(SnapshotError, match="format 99") as raised:
            await unpacked(later, tmp_path)
        assert raised.value.error_code == "parcel_unfit"


async def test_more_than_the_limit_is_refused_by_its_word(parcel: bytes, tmp_path: Path) -> None:
    large = said_otherwise(parcel, put("base", "files", "memory", "size_bytes", value=LIMIT))
    assert (await refusal(large, tmp_path))[0] == "parcel_too_large"
    assert not list(tmp_path.iterdir())


async def test_a_bomb_is_refused_before_it_goes_off(parcel: bytes, tmp_path: Path) -> None:
    bomb = packed(entries(parcel), end=bytes(1 << 28))
    assert len(bomb) < 500_000
    tracemalloc.start()
    try:
        assert (await refusal(bomb, tmp_path))[0] == "parcel_damaged"
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


async def test_an_envelope_without_end_is_refused(tmp_path: Path) -> None:
    entry = tarfile.TarInfo("parcel.json")
    entry.size, entry.mode = 1 << 30, 0o400
    proof = tarfile.TarInfo("signature.json")
    proof.size, proof.mode = 4, 0o400
    assert await refusal(packed([(proof, b"none"), (entry, b"{")]), tmp_path) == (
        "parcel_damaged",
        "this is no exported checkpoint, or it is damaged: "
        "'parcel.json' does not come where it must",
    )


async def test_a_file_that_was_cut_short_is_not_exported(base: Snapshot, tmp_path: Path) -> None:
    files = dict.fromkeys(("device-state", "layer-00"), b"0123456789")
    short = described(tmp_path / "cpshort", files, base.as_base)
    os.truncate(tmp_path / "cpshort" / "layer-00", 5)
    with pytest.raises(SnapshotError, match=r"'layer-00' of 'cpshort' .* cut short") as caught:
        list(pack(envelope_of(base, short), short, base, sign=unbelieved))
    assert str(tmp_path) not in str(caught.value)
