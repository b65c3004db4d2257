"""What of a private mapping is a process's own, asked of the kernel about this very process."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.delta import PAGE_BYTES
from vmpool.engine.qemu import pagemap, pages
from vmpool.engine.qemu.pagemap import Mapping, Span
from vmpool.engine.qemu.pages import Buffer
from vmpool.errors import EngineError

PAGES = 64


class Private:
    """A file of numbered pages, mapped privately by this process."""

    def __init__(self, path: Path, pages: int = PAGES) -> None:
        self.path = path
        path.write_bytes(b"".join(bytes([page % 256]) * PAGE_BYTES for page in range(pages)))
        with path.open("r+b") as file:
            self.memory = mmap.mmap(
                file.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
            )
        anchor = ctypes.c_char.from_buffer(self.memory)
        self.start = ctypes.addressof(anchor)
        del anchor

    def write(self, page: int) -> None:
        self.memory[page * PAGE_BYTES] = 0xFF

    def pages_of(self, spans: list[Span]) -> set[int]:
        return {
            (address - self.start) // PAGE_BYTES
            for start, end in spans
            for address in range(start, end, PAGE_BYTES)
        }


def test_the_pages_that_were_written_are_found_and_no_others(tmp_path: Path) -> None:
    written = {0, 3, 4, 5, 40, PAGES - 1}
    private = Private(tmp_path / "memory")
    for page in range(0, PAGES, 2):
        assert private.memory[page * PAGE_BYTES] == page  # read: there, but the file's
    for page in written:
        private.write(page)
    mappings = pagemap.find_mappings(os.getpid(), private.path, PAGES * PAGE_BYTES)
    assert mappings[0].start == private.start
    spans = pagemap.find_written(os.getpid(), mappings)
    assert private.pages_of(spans) == written
    assert (private.start + 3 * PAGE_BYTES, private.start + 6 * PAGE_BYTES) in spans
    private.memory.close()


def test_a_kernel_without_the_scan_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = Private(tmp_path / "memory")
    for page in (1, 2, 63):
        private.write(page)
    mappings = pagemap.find_mappings(os.getpid(), private.path, PAGES * PAGE_BYTES)
    scanned = pagemap.find_written(os.getpid(), mappings)
    monkeypatch.setattr(pagemap, "_PAGEMAP_SCAN", 0xC06066FF)  # no such request
    monkeypatch.setattr(pagemap, "_ENTRIES", 7)  # several reads, one of them short
    read = pagemap.find_written(os.getpid(), mappings)
    assert private.pages_of(read) == private.pages_of(scanned) == {1, 2, 63}
    private.memory.close()


def test_pages_that_lie_far_and_wide_are_found_once(tmp_path: Path) -> None:
    private = Private(tmp_path / "memory", 8192)
    written = set(range(0, 8192, 3))  # more regions than the kernel keeps before it tells some
    for page in written:
        private.write(page)
    mappings = pagemap.find_mappings(os.getpid(), private.path, 8192 * PAGE_BYTES)
    found = pagemap.find_written(os.getpid(), mappings)
    assert len(found) == len(written)
    assert private.pages_of(found) == written
    private.memory.close()


def test_places_in_a_process_and_in_its_guest_are_each_others_inverse() -> None:
    mappings = (
        Mapping(start=0x70000, end=0x74000, offset=0),
        Mapping(start=0x10000, end=0x12000, offset=0x4000),
        Mapping(start=0x20000, end=0x28000, offset=0x6000),
    )
    process = [(0x71000, 0x74000), (0x10000, 0x12000), (0x20000, 0x21000), (0x25000, 0x28000)]
    memory = [(0x1000, 0x4000), (0x4000, 0x6000), (0x6000, 0x7000), (0xB000, 0xE000)]
    assert pagemap.to_memory(process, mappings) == memory
    assert pagemap.to_process(memory, mappings) == process
    assert pagemap.to_process([(0x1000, 0x7000), memory[3]], mappings) == process
    assert pagemap.to_memory([], mappings) == pagemap.to_process([], mappings) == []


def test_a_scan_with_more_regions_than_fit_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = Private(tmp_path / "memory")
    for page in range(0, PAGES, 2):
        private.write(page)
    mappings = pagemap.find_mappings(os.getpid(), private.path, PAGES * PAGE_BYTES)
    monkeypatch.setattr(pagemap, "_REGIONS", 5)
    found = pagemap.find_written(os.getpid(), mappings)
    assert len(found) == PAGES // 2
    assert private.pages_of(found) == set(range(0, PAGES, 2))
    private.memory.close()


@given(own=st.lists(st.sampled_from(["absent", "file", "written", "swapped"]), max_size=80))
def test_entries_of_the_page_map_are_read_as_the_kernel_writes_them(own: list[str]) -> None:
    bits = {"absent": 0, "file": 1 << 63 | 1 << 61, "written": 1 << 63, "swapped": 1 << 62}
    entries = b"".join(struct.pack("<Q", bits[kind]) for kind in own)
    spans = pagemap.parse_entries(entries, 0x10000)
    found = {
        (address - 0x10000) // PAGE_BYTES
        for start, end in spans
        for address in range(start, end, PAGE_BYTES)
    }
    assert found == {page for page, kind in enumerate(own) if kind in {"written", "swapped"}}
    assert all(end < start for (_, end), (start, _) in itertools.pairwise(spans))


MAPS = (
    b"7f0000004000-7f0000006000 rw-p 00004000 fe:00 12    /s/a b/memory\n"
    b"7f0000000000-7f0000004000 rw-p 00000000 fe:00 12    /s/a b/memory\n"
    b"7f0000010000-7f0000014000 rw-p 00000000 fe:00 12    /s/a b/memory-not\n"
    b"7f0000020000-7f0000024000 rw-p 00000000 00:00 0 \n"
)
CRUMBS = b"".join(
    b"%x-%x rw-p %x fe:00 12    /s/a b/memory\n"
    % (0x7F0000000000 + 2 * offset, 0x7F0000000000 + 2 * offset + PAGE_BYTES, offset)
    for offset in range(0, 514 * PAGE_BYTES, PAGE_BYTES)
)


def test_mappings_come_in_the_order_of_the_guests_memory() -> None:
    assert pagemap.parse_mappings(MAPS, "/s/a b/memory", 0x6000) == (
        Mapping(start=0x7F0000000000, end=0x7F0000004000, offset=0),
        Mapping(start=0x7F0000004000, end=0x7F0000006000, offset=0x4000),
    )


INLAID = (
    b"7f0000000000-7f0000002000 rw-p 00000000 fe:00 12    /s/a b/memory\n"
    b"7f0000002000-7f0000003000 rw-p 00007000 fe:00 13    /s/pages\n"
    b"7f0000003000-7f0000004000 rw-p 00000000 00:09 14    /#4 (deleted)\n"
    b"7f0000004000-7f0000006000 rw-p 00004000 fe:00 12    /s/a b/memory\n"
    b"7f0000006000-7f0000007000 rw-p 00000000 00:00 0     [anon]\n"
)


def test_pages_of_a_checkpoint_are_known_by_lying_between_two_pieces_of_the_template() -> None:
    start = 0x7F0000000000
    assert pagemap.parse_mappings(INLAID, "/s/a b/memory", 0x6000) == (
        Mapping(start=start, end=start + 0x2000, offset=0),
        Mapping(start=start + 0x2000, end=start + 0x3000, offset=0x2000, inlaid=True),
        Mapping(start=start + 0x3000, end=start + 0x4000, offset=0x3000, inlaid=True),
        Mapping(start=start + 0x4000, end=start + 0x6000, offset=0x4000),
    )


def test_all_pages_of_a_checkpoint_count_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = Private(tmp_path / "memory")
    private.write(40)
    other = tmp_path / "other"
    other.write_bytes(bytes(8 * PAGE_BYTES))
    library = ctypes.CDLL(None)
    library.mmap.restype = ctypes.c_void_p
    with other.open("rb") as file:
        address = ctypes.c_void_p(private.start + 10 * PAGE_BYTES)
        fixed = mmap.MAP_PRIVATE | 0x10
        asked = (ctypes.c_size_t(8 * PAGE_BYTES), 3, fixed, file.fileno(), ctypes.c_long(0))
        assert library.mmap(address, *asked) == address.value
    mappings = pagemap.find_mappings(os.getpid(), private.path, PAGES * PAGE_BYTES)
    scanned = pagemap.find_written(os.getpid(), mappings)
    monkeypatch.setattr(pagemap, "_PAGEMAP_SCAN", 0xC06066FF)  # no such request
    for spans in (scanned, pagemap.find_written(os.getpid(), mappings)):
        assert private.pages_of(spans) == {*range(10, 18), 40}
    private.memory.close()


@pytest.mark.parametrize(
    ("maps", "size"),
    [
        pytest.param(b"", 0x6000, id="none"),
        pytest.param(MAPS, 0x7000, id="too-short"),
        pytest.param(MAPS, 0x4000, id="too-long"),
        pytest.param(CRUMBS, 514 * PAGE_BYTES, id="crumbs"),
        pytest.param(MAPS + MAPS.splitlines()[0] + b"\n", 0x6000, id="twice"),
        pytest.param(MAPS.replace(b"rw-p", b"rw-s"), 0x6000, id="shared"),
        pytest.param(MAPS.replace(b" 00004000 ", b" 00005000 "), 0x6000, id="a-gap"),
        pytest.param(MAPS.replace(b" 00004000 ", b" 00003000 "), 0x6000, id="an-overlap"),
        pytest.param(INLAID.replace(b"0003000-7", b"0003800-7"), 0x6000, id="a-hole"),
        pytest.param(
            INLAID.replace(b"-7f0000004000 rw-p", b"-7f0000004800 rw-p"), 0x6000, id="lap"
        ),
        pytest.param(INLAID.replace(b"4000 rw-p 00000000", b"4000 rw-s 00000000"), 0x6000, id="s"),
        pytest.param(INLAID.replace(b" 00004000 ", b" 00005000 "), 0x7000, id="shifted"),
        pytest.param(INLAID, 0x7000, id="none-behind"),
    ],
)
def test_a_process_that_maps_memory_in_another_way_is_not_believed(maps: bytes, size: int) -> None:
    with pytest.raises(EngineError) as caught:
        pagemap.parse_mappings(maps, "/s/a b/memory", size)
    assert caught.value.error_code == "memory_unmapped"


def test_pages_are_copied_one_behind_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private = Private(tmp_path / "memory")
    monkeypatch.setattr(pages, "_IOV_MAX", 3)
    for page in range(1, 20, 2):
        private.write(page)
    mappings = pagemap.find_mappings(os.getpid(), private.path, PAGES * PAGE_BYTES)
    spans = pagemap.find_written(os.getpid(), mappings)
    buffer = Buffer(16 * PAGE_BYTES)
    assert buffer.fill(os.getpid(), spans) == 10 * PAGE_BYTES
    with buffer.view(10 * PAGE_BYTES) as copied:
        for number, page in enumerate(range(1, 20, 2)):
            assert copied[number * PAGE_BYTES : (number + 1) * PAGE_BYTES] == (
                b"\xff" + bytes([page]) * (PAGE_BYTES - 1)
            )
    with pytest.raises(ValueError, match="too few"):
        buffer.fill(os.getpid(), [(private.start, private.start + 17 * PAGE_BYTES)])
    buffer.close()
    private.memory.close()


@pytest.mark.parametrize("request_number", [23, 9999], ids=["asked", "touched"])
def test_a_buffer_is_there_before_it_is_filled(
    monkeypatch: pytest.MonkeyPatch, request_number: int
) -> None:
    monkeypatch.setattr(pages, "_MADV_POPULATE_WRITE", request_number)
    monkeypatch.setattr(mmap, "MADV_HUGEPAGE", mmap.MADV_NOHUGEPAGE)  # one fault for each page
    buffer = Buffer(512 * PAGE_BYTES)
    faults_before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with buffer.view(buffer.size_bytes) as view:
        for at in range(0, len(view), PAGE_BYTES):
            view[at] = 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults_before < 256
    buffer.close()


def test_what_is_gone_is_told_apart_from_what_may_not_be_read() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    buffer = Buffer(PAGE_BYTES)
    for ask in (
        lambda: pagemap.find_mappings(ended.pid, Path("/memory"), PAGE_BYTES),
        lambda: pagemap.find_written(ended.pid, ()),
        lambda: buffer.fill(ended.pid, [(PAGE_BYTES, 2 * PAGE_BYTES)]),
    ):
        with pytest.raises(EngineError) as caught:
            ask()
        assert caught.value.error_code == "qemu_died"
    buffer.close()
    assert pagemap.unreadable(1, PermissionError(1, "no")).error_code == "memory_unreadable"


spans_of_pages = st.lists(
    st.tuples(st.integers(0, 20), st.integers(1, 20)).map(
        lambda pair: (pair[0] * PAGE_BYTES, (pair[0] + pair[1]) * PAGE_BYTES)
    ),
    max_size=10,
)


@given(spans=spans_of_pages, limit=st.integers(1, 12))
def test_batches_hold_every_page_once_and_none_is_too_large(spans: list[Span], limit: int) -> None:
    cut = list(pages.batches(spans, limit * PAGE_BYTES))

    def addresses(of: list[Span]) -> list[int]:
        return [at for start, end in of for at in range(start, end, PAGE_BYTES)]

    assert addresses([span for batch in cut for span in batch]) == addresses(spans)
    sizes = [len(addresses(batch)) for batch in cut]
    assert all(0 < size <= limit for size in sizes)
    assert all(size == limit for size in sizes[:-1])
