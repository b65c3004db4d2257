"""Gauges: what guests use of their processors, memory and disks, by their own account.

A reading is taken when somebody asks, and those before it are kept for a while. What a guest says
is hostile: numbers are bounded and nothing else of it goes on.
"""

from __future__ import annotations

import re
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from vmpool.errors import TaskError
from vmpool.lifecycle import SandboxState
from vmpool.model import Command, Output

if TYPE_CHECKING:
    from vmpool.sandbox import Sandbox

KEPT: Final = 720
"""Readings of each sandbox."""

SPACING_SECONDS: Final = 1.0
"""Between two readings at least; who asks sooner is told the last."""

_SECONDS: Final = 30.0
_MOST_BYTES: Final = 16 << 10
_PROGRAM: Final = (
    "grep '^cpu ' /proc/stat; sleep 0.1; grep -c '^processor' /proc/cpuinfo;"
    " grep '^cpu ' /proc/stat; grep -E '^(MemTotal|MemAvailable|Cached):' /proc/meminfo;"
    " df -B1 --output=used,size /"
)
_NUMBER: Final = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a guest used at one time.

    Attributes:
        at_ns: Unix time.
        cpu_percent: Of all its processors together, of 100.
        memory_cached_bytes: What it would give up for something better; not part of the used.
    """

    at_ns: int
    cpus: int
    cpu_percent: float
    memory_bytes: int
    memory_used_bytes: int
    memory_cached_bytes: int
    disk_bytes: int
    disk_used_bytes: int


class Gauges:
    """The readings of all sandboxes of a host."""

    def __init__(self) -> None:
        self._kept: WeakKeyDictionary[Sandbox, deque[Reading]] = WeakKeyDictionary()

    async def read(self, sandbox: Sandbox) -> list[Reading]:
        """Return the readings of a sandbox, the oldest first; of one that runs, one of now.

        Raises:
            NotFoundError: `sandbox_ended`.
            TaskError: `gauge_unreadable`; the guest cannot say.
            GuestError: The guest is lost.
        """
        kept = self._kept.setdefault(sandbox, deque(maxlen=KEPT))
        if sandbox.state is SandboxState.RUNNING and _is_old(kept):
            reading = parse(await _ask(sandbox), time.time_ns())
            if _is_old(kept):  # nobody was faster
                kept.append(reading)
        return list(kept)


def _is_old(kept: deque[Reading]) -> bool:
    return not kept or time.time_ns() - kept[-1].at_ns >= SPACING_SECONDS * 1e9


async def _ask(sandbox: Sandbox) -> str:
    said = bytearray()
    program = Command(argv=("/bin/sh", "-c", _PROGRAM), cwd="/", timeout=_SECONDS)
    async with sandbox.execute(program) as execution:
        async for event in execution:
            if isinstance(event, Output):
                said += event.data[: _MOST_BYTES - len(said)]
    return said.decode("ascii", "replace")


def parse(said: str, at_ns: int) -> Reading:
    """Return what a guest said.

    Raises:
        TaskError: `gauge_unreadable`.
    """
    lines = [line.split() for line in said.splitlines() if line.strip()]
    try:
        before, (cpus,), after, *memory, _, disk = lines
        sizes = {name.rstrip(":"): _number(size) * 1024 for name, size, _ in memory}
        total, available = sizes["MemTotal"], sizes["MemAvailable"]
        return Reading(
            at_ns=at_ns,
            cpus=_number(cpus),
            cpu_percent=_busy(before, after),
            memory_bytes=total,
            memory_used_bytes=max(total - available, 0),
            memory_cached_bytes=sizes["Cached"],
            disk_bytes=_number(disk[1]),
            disk_used_bytes=_number(disk[0]),
        )
    except (ValueError, KeyError, IndexError) as err:
        raise TaskError(
            "the guest does not say what it uses",
            code="gauge_unreadable",
            remedy="its image needs sh, grep, sleep and df, and /proc",
        ) from err


def _busy(before: list[str], after: list[str]) -> float:
    """Return the percentage of time that was not idle between two lines of `/proc/stat`."""
    spent = [
        _number(late) - _number(early) for early, late in zip(before[1:9], after[1:9], strict=True)
    ]
    whole = sum(spent)
    idle = spent[3] + spent[4]  # proc_stat(5): idle, iowait
    return round(min(max(100 * (whole - idle) / whole, 0.0), 100.0), 2) if whole > 0 else 0.0


def _number(text: str) -> int:
    if _NUMBER.fullmatch(text) is None:
        raise ValueError(text)
    return int(text)
