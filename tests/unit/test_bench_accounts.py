"""What the benchmark reads of files and of a hypervisor's memory map."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from bench import pages, smaps
from bench.smaps import Kind, Part

PAGE = pages.PAGE_BYTES
GUEST_RAM = Path("/state/snapshots/s1/memory")


def test_a_survey_counts_holes_and_zeros_that_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    with path.open("wb") as file:
        file.truncate(64 * PAGE)
        os.pwrite(file.fileno(), b"\1" * PAGE, 16 * PAGE)
        os.pwrite(file.fileno(), bytes(2 * PAGE), 17 * PAGE)
        os.pwrite(file.fileno(), bytes(PAGE - 1) + b"\1", 40 * PAGE)
    found = pages.survey(path)
    assert (found.total, found.stored - found.stored_zero) == (64, 2)
    assert found.zero_share == 62 / 64
    assert found.stored_zero >= 2  # a file system may store more than was written
    assert found.stored_zero_share == found.stored_zero / found.stored
    assert pages.allocated_bytes(path) < 64 * PAGE


def test_a_survey_of_a_hole_finds_nothing_stored(tmp_path: Path) -> None:
    path = tmp_path / "memory"
    with path.open("wb") as file:
        file.truncate(8 * PAGE)
    found = pages.survey(path)
    assert (found.zero_share, found.stored_zero_share) == (1.0, 0.0)


def test_what_was_just_written_is_in_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (10 * mmap.PAGESIZE))
    assert pages.resident_bytes(path) == 10 * mmap.PAGESIZE


def test_each_mapping_is_counted_with_its_kind() -> None:
    text = f"""\
55d0c0000000-55d0c0800000 r-xp 00000000 fe:01 4711    /usr/bin/qemu-system-x86_64
Rss:                 800 kB
Pss:                 200 kB
Private_Clean:        10 kB
Private_Dirty:         0 kB
55d0d0000000-55d0d0800000 rw-p 00000000 00:00 0       [heap]
Private_Dirty:        20 kB
VmFlags: rd wr mr mw me ac sd
7f0000000000-7f0010000000 rw-p 00000000 fe:01 42      {GUEST_RAM}
Private_Clean:        30 kB
Private_Dirty:        40 kB
Swap:                  5 kB
7f0020000000-7f0024000000 rwxp 00000000 00:00 0 \n\
Private_Dirty:        50 kB
7f0030000000-7f0030001000 rw-p 00000000 00:00 0 \n\
Private_Dirty:        60 kB
Private_Hugetlb:    1000 kB
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0       [stack]
Private_Dirty:        70 kB
7ffc00100000-7ffc00102000 r-xp 00000000 00:00 0       [vdso]
Private_Dirty:         1 kB
"""
    parts = smaps.parse(text.splitlines(), guest_ram=GUEST_RAM)
    assert {kind: part.private_bytes // 1024 for kind, part in parts.items()} == {
        Kind.GUEST_RAM: 70,
        Kind.TRANSLATED: 50,
        Kind.HEAP: 20,
        Kind.FILES: 10,
        Kind.ANONYMOUS: 131,
    }
    assert parts[Kind.FILES].pss_bytes == 200 * 1024
    assert parts[Kind.GUEST_RAM].swapped_bytes == 5 * 1024


def test_the_parts_of_a_process_add_up_to_the_kernels_own_sum() -> None:
    mapped = mmap.mmap(-1, 64 << 20)
    mapped.write(b"x" * (32 << 20))
    usage = smaps.read(os.getpid(), guest_ram=GUEST_RAM)
    mapped.close()
    whole = sum(usage.parts.values(), Part())
    assert usage.total.private_bytes > 32 << 20
    # Read one after the other while this very process goes on.
    assert abs(whole.private_bytes - usage.total.private_bytes) < 8 << 20
