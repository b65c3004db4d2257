"""Exposures: who may reach which ports of each sandbox, as the journal has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmpool.exposure import Exposure
from vmpool.journal import Durability

if TYPE_CHECKING:
    from sqlite_utils import Database

    from vmpool.journal import Journal


class Exposures:
    """The ports of a journal's sandboxes; all verbs raise as `Journal.run` does."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def find(self, sandbox_id: str) -> Exposure:
        """Return that of a sandbox; nothing was said of most, whose ports are private."""
        sql = "SELECT value FROM exposures WHERE sandbox_id = ?"
        found = await self._journal.run(lambda db: list(db.query(sql, [sandbox_id])))
        return Exposure.parse(found[0]["value"]) if found else Exposure()

    async def save(self, sandbox_id: str, exposure: Exposure) -> None:
        """Write down that of a sandbox which was recorded; survives a power cut. *Idempotent.*"""

        def save(db: Database) -> None:
            db.execute(
                """INSERT INTO exposures (sandbox_id, value) VALUES (?, ?)
                ON CONFLICT (sandbox_id) DO UPDATE SET value = excluded.value""",
                [sandbox_id, exposure.text],
            )

        await self._journal.run(save, Durability.POWER_CUT)
