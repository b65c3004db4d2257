"""Who may reach which ports of a sandbox, in memory and in the journal: the same."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.unit.test_store import sandbox as row_of
from vmpool.ports import Ports
from vmpool.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.exposure import Exposure


class Box:
    """As much of a sandbox as ports ask for."""

    id = "abc"


class Hesitant:
    """Exposures of a journal that has written, and does not say so yet."""

    def __init__(self, store: Store) -> None:
        self.find = store.exposures.find
        self._save = store.exposures.save
        self.written = asyncio.Event()

    async def save(self, sandbox_id: str, exposure: Exposure) -> None:
        await self._save(sandbox_id, exposure)
        self.written.set()
        await asyncio.Event().wait()


async def test_a_port_whose_closing_was_cancelled_is_what_the_journal_says(tmp_path: Path) -> None:
    box: Any = Box()
    async with Store(tmp_path / "vmpool.db") as store:
        await store.record_sandbox(row_of("abc"))
        slow = Hesitant(store)
        household: Any = SimpleNamespace(living=lambda _: SimpleNamespace(sandbox=box))
        hesitant: Any = SimpleNamespace(exposures=slow)
        await Ports(store, household).publish(box, 80, public=True)

        ports = Ports(hesitant, household)
        assert await ports.open_to_all(sandbox_id="abc", port=80) is not None
        closing = asyncio.create_task(ports.publish(box, 80, public=False))
        await slow.written.wait()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert await ports.open_to_all(sandbox_id="abc", port=80) is None
