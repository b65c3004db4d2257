"""The comparison of accelerators measures what it can, and says in words what it cannot."""

from __future__ import annotations

import math
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.measurement import Findings, Pace
from bench.measurements import firmware
from vmpool.engine.qemu import QemuEngine, handover

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def clones() -> Iterator[Path]:
    """A directory with a short name: a socket's path has at most 107 bytes."""
    directory = Path(f"/tmp/vmpool-{secrets.token_hex(4)}")
    directory.mkdir(mode=0o700)
    yield directory
    shutil.rmtree(directory)


async def test_without_kvm_only_emulation_is_measured_and_that_is_said(
    clones: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "_KVM", "/dev/no-kvm")
    found = Findings(measurement="firmware", image="base")
    pace = Pace(rounds=2, deadline=math.inf)
    await firmware.compare(await QemuEngine.detect(), clones, pace, found)
    assert found.failures == []
    assert found.remarks == [
        f"{board}, kvm: skipped: cannot open /dev/no-kvm: No such file or directory"
        for board in ("q35", "microvm")
    ]
    series = {one.name: one.samples for one in found.all_series}
    assert {name.partition(":")[0] for name in series} == {"q35, tcg", "microvm, tcg"}
    assert all(len(samples) == 2 and min(samples) > 0 for samples in series.values())
    assert "q35, tcg: powered off by its guest" in series
    assert not list(clones.iterdir())
