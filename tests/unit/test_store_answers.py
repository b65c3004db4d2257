"""What was told is found without looking through the past."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmpool.journal import Journal
from vmpool.store.answers import SETTLE
from vmpool.store.schema import SCHEMA

if TYPE_CHECKING:
    from pathlib import Path


async def test_no_answer_costs_a_look_at_every_sandbox_that_ever_was(tmp_path: Path) -> None:
    async with Journal(tmp_path / "vmpool.db", SCHEMA) as journal:
        plan = await journal.run(
            lambda db: [row["detail"] for row in db.query(f"EXPLAIN QUERY PLAN {SETTLE}", [b"t"])]
        )
    assert plan == ["SEARCH sandboxes USING INDEX sandboxes_by_ticket (ticket=?)"]
