"""Disks: the overlay is one that QEMU takes, the scratch disk is the same each time."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool import disk
from vmpool.errors import DiskFullError, HostError, InfrastructureError
from vmpool.model import GIB, MIB


def overlay(path: Path, size_bytes: int) -> Path:
    with path.open("xb") as file:
        disk.write_overlay(file.fileno(), size_bytes)
    return path


def qemu_img(*argv: str) -> Any:
    done = subprocess.run(["qemu-img", *argv], check=True, capture_output=True)
    return json.loads(done.stdout or b"{}")


@pytest.mark.parametrize("size_bytes", [512, MIB, 10 * GIB + 512, disk.OVERLAY_LIMIT_BYTES])
def test_qemu_accepts_an_overlay(tmp_path: Path, size_bytes: int) -> None:
    path = overlay(tmp_path / "overlay", size_bytes)
    check = qemu_img("check", "-f", "qcow2", "--output=json", str(path))
    assert check["check-errors"] == 0
    assert check.get("leaks", 0) == check.get("corruptions", 0) == 0
    info = qemu_img("info", "-f", "qcow2", "--output=json", str(path))
    assert info["virtual-size"] == size_bytes
    assert "backing-filename" not in info


def test_an_overlay_reads_what_is_beneath_and_keeps_what_is_written(tmp_path: Path) -> None:
    beneath = tmp_path / "beneath"
    beneath.write_bytes(b"golden!!" * (MIB // 8))
    path = overlay(tmp_path / "overlay", MIB)
    stack = {
        "driver": "qcow2",
        "file": {"driver": "file", "filename": str(path)},
        "backing": {
            "driver": "raw",
            "file": {"driver": "file", "filename": str(beneath), "read-only": True},
        },
    }
    commands = ["read -P 0x67 0 1", "write -P 0xab 4096 512", "read -P 0xab 4096 512"]
    argv = [
        "qemu-io",
        *(part for one in commands for part in ("-c", one)),
        f"json:{json.dumps(stack)}",
    ]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    assert "failed" not in done.stdout + done.stderr
    assert beneath.read_bytes() == b"golden!!" * (MIB // 8)
    assert qemu_img("check", "-f", "qcow2", "--output=json", str(path))["check-errors"] == 0


@given(st.integers().filter(lambda n: n % 512 or not 0 < n <= disk.OVERLAY_LIMIT_BYTES))
def test_a_size_that_no_overlay_can_have_is_a_mistake(size_bytes: int) -> None:
    with Path(os.devnull).open("wb") as null, pytest.raises(ValueError, match="overlay"):
        disk.write_overlay(null.fileno(), size_bytes)


def test_a_full_disk_is_said_to_be_full() -> None:
    with Path("/dev/full").open("wb", buffering=0) as full, pytest.raises(DiskFullError):
        disk.write_overlay(full.fileno(), MIB)


async def test_a_scratch_disk_is_a_clean_empty_file_system(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        await disk.create_scratch(path, 64 * MIB)
    assert first.stat().st_size == 64 * MIB
    assert first.stat().st_blocks * 512 < MIB
    await asyncio.to_thread(
        subprocess.run, ["e2fsck", "-fn", str(first)], check=True, capture_output=True
    )
    assert first.read_bytes() == second.read_bytes()


async def test_a_scratch_disk_is_not_made_over_another_file(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        await disk.create_scratch(path, 64 * MIB)
    assert path.read_bytes() == b"mine"


async def test_a_scratch_disk_that_cannot_be_made_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(HostError):
        await disk.create_scratch(tmp_path / "small", 512)
    assert not os.listdir(tmp_path)  # noqa: PTH208 -- short


def test_an_overlay_that_qemu_wrote_to_is_plain(tmp_path: Path) -> None:
    path = overlay(tmp_path / "overlay", MIB)
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", "write -P 1 0 128k", str(path)],
        check=True,
        capture_output=True,
    )
    with path.open("rb") as file:
        disk.require_plain(file.read(disk.HEADER_BYTES), MIB)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("-b", "golden", "-F", "raw"), id="another-backing-file"),
        pytest.param(("-o", "data_file=elsewhere,data_file_raw=on"), id="data-elsewhere"),
        pytest.param(("-o", "cluster_size=4k"), id="other-clusters"),
        pytest.param(("-o", "compression_type=zstd"), id="another-compression"),
    ],
)
def test_an_overlay_that_leads_elsewhere_is_refused(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    (tmp_path / "golden").write_bytes(bytes(MIB))
    path = tmp_path / "overlay"
    words = [word.replace("elsewhere", str(tmp_path / "elsewhere")) for word in options]
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", *words, str(path), str(MIB)], check=True
    )
    with path.open("rb") as file, pytest.raises(InfrastructureError):
        disk.require_plain(file.read(disk.HEADER_BYTES), MIB)


@pytest.mark.parametrize("length", [0, disk.HEADER_BYTES - 1, disk.HEADER_BYTES])
def test_what_is_no_overlay_is_refused(length: int) -> None:
    with pytest.raises(InfrastructureError):
        disk.require_plain(b"Q" * length, MIB)
