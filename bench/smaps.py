"""Smaps: what a hypervisor's memory is made of, from proc_pid_smaps(5)."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ (?P<rights>\S{4}) \S+ \S+ \d+ *(?P<path>.*)")
_FIELD = re.compile(r"(?P<name>\w+): +(?P<kib>\d+) kB")


class Kind(StrEnum):
    """What a mapping is for."""

    GUEST_RAM = "guest RAM"
    TRANSLATED = "translated code"
    HEAP = "heap"
    FILES = "binary and libraries"
    ANONYMOUS = "other anonymous"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Memory of some mappings.

    Attributes:
        private_bytes: Pages that nobody else maps, changed or not.
        pss_bytes: Those, and a share of the pages that others map too.
    """

    private_bytes: int = 0
    pss_bytes: int = 0
    rss_bytes: int = 0
    swapped_bytes: int = 0

    def __add__(self, other: Part) -> Part:
        return Part(
            private_bytes=self.private_bytes + other.private_bytes,
            pss_bytes=self.pss_bytes + other.pss_bytes,
            rss_bytes=self.rss_bytes + other.rss_bytes,
            swapped_bytes=self.swapped_bytes + other.swapped_bytes,
        )

    def as_data(self) -> dict[str, int]:
        """Return the four numbers by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Memory of one process.

    Attributes:
        total: As the kernel adds it up.
        parts: The same by kind, read a moment later.
    """

    total: Part
    parts: dict[Kind, Part]


def read(pid: int, *, guest_ram: Path) -> Usage:
    """Read the memory of a hypervisor. Blocks.

    Args:
        guest_ram: The file that the guest's memory is mapped from.

    Raises:
        OSError: There is no such process, or it may not be looked at.
    """
    process = Path(f"/proc/{pid}")
    rollup = parse((process / "smaps_rollup").read_text().splitlines(), guest_ram=guest_ram)
    parts = parse((process / "smaps").read_text().splitlines(), guest_ram=guest_ram)
    return Usage(total=sum(rollup.values(), Part()), parts=parts)


def parse(lines: Iterable[str], *, guest_ram: Path) -> dict[Kind, Part]:
    """Return the memory by kind of what `smaps` or `smaps_rollup` says."""
    parts = dict.fromkeys(Kind, Part())
    kind = Kind.ANONYMOUS
    for line in lines:
        if field := _FIELD.match(line):
            parts[kind] += _part(field["name"], int(field["kib"]) * 1024)
        elif mapping := _MAPPING.match(line):
            kind = _kind(mapping["rights"], mapping["path"], guest_ram)
    return parts


def _part(name: str, size_bytes: int) -> Part:
    match name:
        case "Private_Clean" | "Private_Dirty":
            return Part(private_bytes=size_bytes)
        case "Pss":
            return Part(pss_bytes=size_bytes)
        case "Rss":
            return Part(rss_bytes=size_bytes)
        case "Swap":
            return Part(swapped_bytes=size_bytes)
        case _:
            return Part()


def _kind(rights: str, path: str, guest_ram: Path) -> Kind:
    if path.removesuffix(" (deleted)") == str(guest_ram):
        return Kind.GUEST_RAM
    if ("x" in rights and not path) or path.startswith("/memfd:tcg-jit"):
        return Kind.TRANSLATED
    if path == "[heap]":
        return Kind.HEAP
    return Kind.FILES if path.startswith("/") else Kind.ANONYMOUS
