"""A delta is read as it was written, or refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vmpool import delta
from vmpool.delta import PAGE_BYTES
from vmpool.errors import DiskFullError, SnapshotError

MEMORY_BYTES = 64 * PAGE_BYTES
HEAD_BYTES = 16
ZERO = bytes(PAGE_BYTES)

memories = st.lists(
    st.sampled_from([None, ZERO, b"x" * PAGE_BYTES, bytes(PAGE_BYTES - 1) + b"y"]), max_size=64
)


def written(path: Path, memory: list[bytes | None]) -> list[delta.Span]:
    """Write the pages of `memory` that are not `None`; return where they are."""
    spans = [
        (page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
        for page, data in enumerate(memory)
        if data is not None
    ]
    path.unlink(missing_ok=True)
    writer = delta.Writer(path, spans)
    for data in memory:
        if data is not None:
            writer.append(memoryview(data))
    writer.close()
    return spans


@given(memories)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_written_is_read_in_its_places(tmp_path: Path, memory: list[bytes | None]) -> None:
    spans = written(tmp_path / "pages", memory)
    with delta.opened(tmp_path / "pages", MEMORY_BYTES) as read:
        assert list(read.spans) == spans
        assert bytes(read.data) == b"".join(data for data in memory if data is not None)
        assert read.size_bytes == len(spans) * PAGE_BYTES


def test_zeros_take_no_space(tmp_path: Path) -> None:
    written(tmp_path / "zero", [ZERO] * 64)
    written(tmp_path / "full", [b"x" * PAGE_BYTES] * 64)
    zero, full = ((tmp_path / name).stat() for name in ("zero", "full"))
    assert zero.st_size == full.st_size
    assert zero.st_blocks * 512 <= 2 * PAGE_BYTES < full.st_blocks * 512


@given(st.integers(0, 3 * PAGE_BYTES - 1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "pages"
    written(path, [b"x" * PAGE_BYTES, None, ZERO])
    os.truncate(path, length)
    with pytest.raises(SnapshotError) as caught, delta.opened(path, MEMORY_BYTES):
        pytest.fail("opened")
    assert caught.value.error_code == "snapshot_damaged"


@pytest.mark.parametrize(
    ("at", "number"),
    [
        (8, 1 << 62),  # how many places
        (8, 1),
        (8, 3),
        (HEAD_BYTES, 2 * PAGE_BYTES),  # the first begins where it ends
        (HEAD_BYTES, 1),
        (HEAD_BYTES + 8, PAGE_BYTES + 1),
        (HEAD_BYTES + 8, 3 * PAGE_BYTES),  # it ends within the second
        (HEAD_BYTES + 24, 65 * PAGE_BYTES),  # the second ends beyond the guest's memory
        (HEAD_BYTES + 24, 1 << 63),
    ],
)
def test_an_index_that_cannot_be_is_refused(tmp_path: Path, at: int, number: int) -> None:
    path = tmp_path / "pages"
    written(path, [None, b"x" * PAGE_BYTES, ZERO])
    with path.open("r+b") as file:
        file.seek(at)
        file.write(struct.pack("<Q", number))
    with pytest.raises(SnapshotError) as caught, delta.opened(path, MEMORY_BYTES):
        pytest.fail("opened")
    assert caught.value.error_code == "snapshot_damaged"


def test_a_delta_that_cannot_be_written_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SnapshotError) as caught:
        delta.Writer(tmp_path / "missing" / "pages", [])
    assert caught.value.error_code == "snapshot_unsaved"
    writer = delta.Writer(tmp_path / "pages", [(0, PAGE_BYTES)])

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(DiskFullError):
        writer.append(memoryview(b"x" * PAGE_BYTES))
    with pytest.raises(DiskFullError):
        delta.Writer(tmp_path / "other", [(0, PAGE_BYTES)])
    writer.close()
    writer.close()
