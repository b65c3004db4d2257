"""Pagemap: which pages of a clone's memory are its own.

A clone maps its template's memory file privately: a page that it never wrote is the file's, a page
that it wrote is anonymous. The kernel tells the two apart. What differs from the template is found
this way without the guest's help and without having watched it, in time that follows the mapping's
page tables.

The process is a hostile guest's hypervisor. It may have mapped anything anywhere, so what is found
is believed only when it covers the guest's memory exactly once.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool.delta import PAGE_BYTES
from vmpool.errors import EngineError, HostError

if TYPE_CHECKING:
    from collections.abc import Sequence

Span = tuple[int, int]
"""Where pages begin and end in the process; a plain pair, since they come in thousands."""

# linux/fs.h: struct pm_scan_arg, PAGEMAP_SCAN and the categories of pages.
_ARGUMENT = struct.Struct("<12Q")
_PAGEMAP_SCAN = 0xC0606610
_IS_FILE, _IS_PRESENT, _IS_SWAPPED = 1 << 2, 1 << 3, 1 << 4
_REGION = struct.Struct("<3Q")
_REGIONS = 4096

# admin-guide/mm/pagemap.rst: an entry of /proc/PID/pagemap.
_ENTRY = struct.Struct("<Q")
_ENTRY_PRESENT, _ENTRY_SWAPPED, _ENTRY_FILE = 1 << 63, 1 << 62, 1 << 61
_ENTRIES = 64 << 10

# A QEMU maps a guest's memory in one, which `INLAID_MOST` cut up; pages are looked up among them.
INLAID_MOST = 256
_MAPPINGS_MOST = 2 * INLAID_MOST + 1
_MAPS_LIMIT_BYTES = 4 << 20  # a QEMU has some hundred mappings of about a hundred bytes each


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A private mapping of a part of the guest's memory.

    Attributes:
        start: Address in the process; `end` likewise.
        offset: Of `start` in the guest's memory.
        inlaid: Whether a checkpoint's pages lie there, all of which differ from the template; the
            template's file otherwise.
    """

    start: int
    end: int
    offset: int
    inlaid: bool = False


def find_mappings(pid: int, memory: Path, size_bytes: int) -> tuple[Mapping, ...]:
    """Return how `pid` maps the file `memory`, in the order of the guest's addresses.

    Args:
        size_bytes: Of the guest's memory, all of which must be mapped.

    Raises:
        EngineError: It is not mapped privately, whole and once (`memory_unmapped`), or the process
            is gone (`qemu_died`).
        HostError: `memory_unreadable`; this process may not look.
    """
    try:
        with Path(f"/proc/{pid}/maps").open("rb") as file:
            text = file.read(_MAPS_LIMIT_BYTES)
    except OSError as err:
        raise unreadable(pid, err) from err
    return parse_mappings(text, os.path.realpath(memory), size_bytes)


def parse_mappings(maps: bytes, memory: str, size_bytes: int) -> tuple[Mapping, ...]:
    """Return the mappings of the file `memory` that `maps` lists, as `find_mappings`.

    Args:
        maps: What /proc/PID/maps says.

    Raises:
        EngineError: They do not cover `size_bytes` once, or are in crumbs; code
            `memory_unmapped`.
    """
    wanted = os.fsencode(memory).replace(b"\n", b"\\012")  # the one byte that is escaped there
    found: list[Mapping] = []
    others: dict[int, int] = {}
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1].endswith(b"p"):
            start, end = (int(number, 16) for number in fields[0].split(b"-"))
            if fields[5] == wanted:
                found.append(Mapping(start=start, end=end, offset=int(fields[2], 16)))
            else:
                others[start] = end
    found.sort(key=lambda mapping: mapping.offset)
    whole: list[Mapping] = []
    reached = 0
    for mapping in found:
        if whole and mapping.offset > reached:
            whole += _inlaid(whole[-1], mapping, others)
            reached = mapping.offset
        if mapping.offset != reached:
            break
        whole.append(mapping)
        reached += mapping.end - mapping.start
    else:
        if reached == size_bytes and len(whole) <= _MAPPINGS_MOST:
            return tuple(whole)
    raise _unmapped()


def _inlaid(before: Mapping, after: Mapping, others: dict[int, int]) -> list[Mapping]:
    """Return what lies between two mappings of the template, without a gap.

    Args:
        others: Where mappings of other files begin, and where they end.
    """
    found: list[Mapping] = []
    shift = before.offset - before.start
    start = before.end
    while start < after.start and start in others and len(found) < _MAPPINGS_MOST:
        found.append(Mapping(start=start, end=others[start], offset=start + shift, inlaid=True))
        start = others[start]
    if start != after.start or after.start + shift != after.offset:
        raise _unmapped()
    return found


def _unmapped() -> EngineError:
    return EngineError(
        "QEMU does not map its template's memory once and whole", code="memory_unmapped"
    )


def find_written(pid: int, mappings: tuple[Mapping, ...]) -> list[Span]:
    """Return where the process's own pages lie, in the order of `mappings`.

    Exact while the machine is paused; while it runs, pages may have been written since.

    Raises:
        EngineError: The process is gone; code `qemu_died`.
        HostError: `memory_unreadable`; this process may not look.
    """
    try:
        descriptor = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                return _scan(descriptor, mappings)
            except OSError as err:
                if err.errno not in {errno.ENOTTY, errno.EINVAL}:
                    raise
                return _read(descriptor, mappings)  # a kernel before 6.7
        finally:
            os.close(descriptor)
    except OSError as err:
        raise unreadable(pid, err) from err


def to_memory(spans: Sequence[Span], mappings: tuple[Mapping, ...]) -> list[Span]:
    """Return where in the guest's memory `spans` lie that `find_written` found in `mappings`."""
    found: list[Span] = []
    at = 0
    for mapping in mappings:
        shift = mapping.offset - mapping.start
        while at < len(spans) and mapping.start <= spans[at][0] < mapping.end:
            found.append((spans[at][0] + shift, spans[at][1] + shift))
            at += 1
    return found


def to_process(spans: Sequence[Span], mappings: tuple[Mapping, ...]) -> list[Span]:
    """Return where in a process `spans` of the guest's memory lie, cut where mappings end."""
    found: list[Span] = []
    rest = iter(mappings)
    mapping = next(rest)
    for first, end in spans:
        start = first
        while start < end:
            while start >= mapping.offset + mapping.end - mapping.start:
                mapping = next(rest)
            shift = mapping.start - mapping.offset
            stop = min(end + shift, mapping.end)
            found.append((start + shift, stop))
            start = stop - shift
    return found


def _scan(descriptor: int, mappings: tuple[Mapping, ...]) -> list[Span]:
    regions = (ctypes.c_uint64 * (3 * _REGIONS))()
    spans: list[Span] = []
    for mapping in mappings:
        if mapping.inlaid:
            spans.append((mapping.start, mapping.end))
            continue
        start = mapping.start
        while start < mapping.end:
            argument = bytearray(
                _ARGUMENT.pack(
                    *(_ARGUMENT.size, 0),  # size, flags
                    *(start, mapping.end, 0),  # from, to, out: where it ended, or before
                    *(ctypes.addressof(regions), _REGIONS, 0),  # no limit but the regions
                    # No file's, and there or in swap; one category in the answer merges neighbours.
                    *(_IS_FILE, _IS_FILE, _IS_PRESENT | _IS_SWAPPED, _IS_FILE),
                )
            )
            count = fcntl.ioctl(descriptor, _PAGEMAP_SCAN, argument)
            found = memoryview(regions).cast("B")[: count * _REGION.size]
            spans += [(first, last) for first, last, _ in _REGION.iter_unpack(found)]
            # Not where the kernel says that its walk ended: Linux 6.18 forgets to say that it came
            # to the end once it had found more than 512 regions on the way.
            start = spans[-1][1] if count == _REGIONS else mapping.end
    return spans


def _read(descriptor: int, mappings: tuple[Mapping, ...]) -> list[Span]:
    spans: list[Span] = []
    for mapping in mappings:
        if mapping.inlaid:
            spans.append((mapping.start, mapping.end))
            continue
        for start in range(mapping.start, mapping.end, _ENTRIES * PAGE_BYTES):
            pages = min(_ENTRIES, (mapping.end - start) // PAGE_BYTES)
            entries = os.pread(descriptor, pages * _ENTRY.size, start // PAGE_BYTES * _ENTRY.size)
            spans += parse_entries(entries, start)
    return spans


def parse_entries(entries: bytes, start: int) -> list[Span]:
    """Return where the pages are that `entries` says are the process's own.

    Args:
        entries: Of /proc/PID/pagemap, one for each page from the address `start` on.
    """
    spans: list[Span] = []
    for page, (entry,) in enumerate(_ENTRY.iter_unpack(entries)):
        if not entry & (_ENTRY_PRESENT | _ENTRY_SWAPPED) or entry & _ENTRY_FILE:
            continue
        address = start + page * PAGE_BYTES
        if spans and spans[-1][1] == address:
            spans[-1] = (spans[-1][0], address + PAGE_BYTES)
        else:
            spans.append((address, address + PAGE_BYTES))
    return spans


def unreadable(pid: int, err: OSError) -> EngineError | HostError:
    """Return, as an error to raise, why the memory of the process `pid` could not be read."""
    if err.errno in {errno.ESRCH, errno.ENOENT}:
        return EngineError(f"QEMU (process {pid}) is gone", code="qemu_died")
    return HostError(
        f"cannot read the memory of QEMU (process {pid}): {err.strerror}",
        code="memory_unreadable",
        remedy="give the server the capability CAP_SYS_PTRACE",
    )
