"""Room: how many clones may be alive at one time without taking the machine's memory away."""

from __future__ import annotations

from pathlib import Path

CLONE_BYTES = 52_000_000
"""What one more idle clone takes: its own memory (see the measurement `memory`), the kernel's."""

SHARE = 0.8
"""Of the memory that is free now; the rest is for what is measured beside them."""

FILL_SECONDS = 240.0
"""For the largest pool that is filled."""


def clones() -> int:
    """Return how many more clones fit now."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return int(available * SHARE / CLONE_BYTES)
