"""A checkpoint laid over its base is what the guest saw, and nothing of either is changed."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes import PROCESSOR
from vmpool import delta, disk
from vmpool.delta import PAGE_BYTES
from vmpool.errors import InfrastructureError, SnapshotError
from vmpool.fusion import fuse
from vmpool.model import MIB, Accelerator, MachineSpec, Transport
from vmpool.snapshot import DISK, LAYERS, MEMORY, PAGES, Manifest, Snapshot, layer_name

PAGES_OF_GUEST = 24
ZERO = bytes(PAGE_BYTES)
DISK_BYTES = 4 * MIB + 512

pages = st.sampled_from([ZERO, b"b" * PAGE_BYTES, bytes(PAGE_BYTES - 1) + b"y"])
memories = st.lists(pages, min_size=PAGES_OF_GUEST, max_size=PAGES_OF_GUEST)
written = st.lists(st.none() | pages, min_size=PAGES_OF_GUEST, max_size=PAGES_OF_GUEST)


def base(directory: Path, memory: bytes, *, disk_bytes: int = 0) -> Snapshot:
    directory.mkdir(exist_ok=True)
    (directory / MEMORY).write_bytes(memory)
    spec = MachineSpec(
        root=Path("/root.erofs"),
        memory_bytes=len(memory),
        accelerator=Accelerator.TCG,
        transport=Transport.SERIAL,
        qemu_version="10.0.2",
        disk_bytes=disk_bytes,
    )
    manifest = Manifest(
        id="base", image="image", spec=spec, processor=PROCESSOR, files={}, created_ns=0
    )
    return Snapshot(directory=directory, manifest=manifest)


def checkpoint(directory: Path, own: list[bytes | None]) -> Path:
    directory.mkdir(exist_ok=True)
    for left in directory.iterdir():
        left.unlink()
    places = [
        (page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
        for page, data in enumerate(own)
        if data is not None
    ]
    writer = delta.Writer(directory / PAGES, places)
    for data in own:
        if data is not None:
            writer.append(memoryview(data))
    writer.close()
    return directory


@given(memories, written)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_memory_is_the_base_but_where_the_guest_wrote(
    tmp_path: Path, memory: list[bytes], own: list[bytes | None]
) -> None:
    template = base(tmp_path / "base", b"".join(memory))
    directory = checkpoint(tmp_path / "own", own)
    fuse(directory, template)
    seen = [page if mine is None else mine for page, mine in zip(memory, own, strict=True)]
    assert (directory / MEMORY).read_bytes() == b"".join(seen)
    assert template.memory.read_bytes() == b"".join(memory)
    assert not (directory / PAGES).exists()


def test_pages_that_the_guest_zeroed_take_no_space(tmp_path: Path) -> None:
    template = base(tmp_path / "base", b"x" * PAGE_BYTES * 64)
    directory = checkpoint(tmp_path / "own", [ZERO] * 64)
    fuse(directory, template)
    found = (directory / MEMORY).stat()
    assert found.st_size == 64 * PAGE_BYTES
    assert found.st_blocks * 512 < 2 * PAGE_BYTES


def overlay(path: Path, beneath: Path, *commands: str) -> None:
    """Write an overlay as a hypervisor does."""
    with path.open("xb") as file:
        disk.write_overlay(file.fileno(), DISK_BYTES)
    raw = {"driver": "raw", "file": {"driver": "file", "filename": str(beneath)}}
    stack = {"driver": "qcow2", "file": {"driver": "file", "filename": str(path)}, "backing": raw}
    told = [part for command in commands for part in ("-c", command)]
    subprocess.run(["qemu-io", *told, f"json:{json.dumps(stack)}"], check=True, capture_output=True)


def test_layers_of_disk_are_poured_in_their_order(tmp_path: Path) -> None:
    template = base(tmp_path / "base", ZERO, disk_bytes=DISK_BYTES)
    golden = template.directory / DISK
    golden.write_bytes(b"g" * MIB)
    os.truncate(golden, DISK_BYTES)
    directory = checkpoint(tmp_path / "own", [])
    overlay(directory / layer_name(0), golden, "write -P 1 0 64k", "write -P 2 2M 64k")
    between = tmp_path / "between"
    between.write_bytes(bytes([1]) * 65536 + b"g" * (MIB - 65536))
    os.truncate(between, DISK_BYTES)
    overlay(
        directory / layer_name(1),
        between,
        "write -z 0 64k",
        "write -P 3 128k 512",
        "write -P 4 4M 512",
    )
    fuse(directory, template)
    seen = bytearray(b"g" * MIB + bytes(DISK_BYTES - MIB))
    seen[:65536] = bytes(65536)
    seen[131072 : 131072 + 512] = bytes([3]) * 512
    seen[2 * MIB : 2 * MIB + 65536] = bytes([2]) * 65536
    seen[4 * MIB :] = bytes([4]) * 512
    assert (directory / DISK).read_bytes() == bytes(seen)
    assert not list(directory.glob(LAYERS))


def test_a_layer_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    template = base(tmp_path / "base", ZERO, disk_bytes=DISK_BYTES)
    (template.directory / DISK).write_bytes(b"")
    directory = checkpoint(tmp_path / "own", [])
    layer = directory / layer_name(0)
    overlay(layer, template.directory / DISK, "write -P 1 0 64k")
    whole = bytearray(layer.read_bytes())
    whole[8:20] = (4096).to_bytes(8, "big") + (5).to_bytes(4, "big")  # a backing file's name
    layer.write_bytes(whole)
    with pytest.raises(InfrastructureError, match="not what was made"):
        fuse(directory, template)


def test_a_delta_of_another_machine_is_refused(tmp_path: Path) -> None:
    template = base(tmp_path / "base", ZERO)
    with pytest.raises(SnapshotError, match="do not fit"):
        fuse(checkpoint(tmp_path / "own", [None, ZERO]), template)
