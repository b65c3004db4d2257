"""The engines that the contract is held by."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.contract.benches import Bench, opened
from tests.fakes import FakeEngine, Faults
from vmpool.engine import Engine
from vmpool.engine.qemu import QemuEngine
from vmpool.model import Accelerator, Transport


@pytest.fixture(params=["fake", "fake-disk", "q35", "q35-disk", "microvm"])
async def bench(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bench]:
    engine: Engine = (
        FakeEngine(Faults(load_delay=0.01))
        if request.param.startswith("fake")
        else await QemuEngine.detect()
    )
    with opened(engine, request.param, Accelerator.TCG, Transport.SERIAL, tmp_path) as bench:
        yield bench
    engine.close()
