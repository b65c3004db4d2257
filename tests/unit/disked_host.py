"""Hosts whose sandboxes have disks, over guests that are processes of this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fake_host import add_template, opened
from tests.fakes import FakeEngine
from tests.standing import SAYS, stand
from vmpool.host import Host
from vmpool.model import MIB

DISK_BYTES = 8 * MIB


@pytest.fixture(autouse=True)
def standing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let guests, which have no disk of their own to freeze, write down that they were let go."""
    stand(monkeypatch, f"{SAYS}; echo let go > {tmp_path}/let-go")


@pytest.fixture
async def disked(state: Path, engine: FakeEngine) -> AsyncIterator[Host]:
    """Yield a host with a template that has a disk."""
    async with opened(state, engine) as host:
        await add_template(host, disk_bytes=DISK_BYTES)
        yield host
