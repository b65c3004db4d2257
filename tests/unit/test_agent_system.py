"""What the agent asks of the machine that it runs in."""

from __future__ import annotations

from pathlib import Path

from vmpool_agent.system import clearable, reserved_pages

MIB = 1 << 20
ZONES = b"""\
Node 0, zone      DMA
  pages free     3840
        min      69
        high     105
        protection: (0, 1963, 1963, 1963, 1963)
  pagesets
    cpu: 0
              count:    0
              high:     4
Node 0, zone    DMA32
  pages free     502000
        high     16811
        high_atomic 0
        protection: (0, 0, 0, 0, 0)
"""


def test_the_kernels_reserve_is_its_high_marks_and_what_zones_keep_from_others() -> None:
    assert reserved_pages(ZONES.splitlines()) == 105 + 1963 + 16811


def test_the_kernel_in_use_tells_its_reserve() -> None:
    assert reserved_pages(Path("/proc/zoneinfo").read_bytes().splitlines()) > 0


def test_clearing_free_memory_leaves_the_reserve_and_room_for_page_tables() -> None:
    free, reserve = 2014 * MIB, 74 * MIB
    asked = clearable(free, reserve)
    assert 0.9 * free < asked
    assert asked + asked // 512 + reserve <= free - 8 * MIB
