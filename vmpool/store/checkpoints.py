"""Checkpoints: the states that sandboxes were in and that somebody needs, as the journal has them.

A pause and its end are one transaction each over both tables, so that a sandbox has either a
machine or a checkpoint to go on from, whenever the server dies. What a power cut does not end is
synced.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from vmpool.errors import ConflictError, NotFoundError
from vmpool.journal import Durability
from vmpool.store import rows
from vmpool.store.rows import IfTaken
from vmpool.store.tenants import require_there

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlite_utils import Database

    from vmpool.journal import Journal
    from vmpool.model import IdentityReceipt
    from vmpool.store.rows import CheckpointRow
    from vmpool.trust.sealing import Sealing


class Checkpoints:
    """The checkpoints of a journal; all verbs raise as `Journal.run` does."""

    def __init__(self, journal: Journal, sealing: Sealing) -> None:
        self._journal = journal
        self._sealing = sealing

    async def all(self) -> list[CheckpointRow]:
        """Return all checkpoints, the oldest first."""
        found = await self._journal.run(
            lambda db: list(db.table("checkpoints").rows_where(order_by="created_ns, id"))
        )
        return [rows.checkpoint(row, self._sealing) for row in found]

    async def record(self, checkpoint: CheckpointRow, if_taken: IfTaken = IfTaken.REFUSE) -> None:
        """Record a checkpoint that is there. *Not idempotent.*

        Args:
            if_taken: What becomes of its name when another one of its owner has it.

        Raises:
            ConflictError: `checkpoint_exists`; its owner has one of that name, which stays there.
            UnauthorizedError: Its owner was removed meanwhile.
        """
        columns = rows.checkpoint_columns(checkpoint, self._sealing)

        def record(db: Database) -> None:
            require_there(db, checkpoint.owner)
            if if_taken is IfTaken.MOVE:
                db.execute(
                    "UPDATE checkpoints SET name = NULL WHERE owner = ? AND name = ?",
                    [checkpoint.owner, checkpoint.name],
                )
            _insert(db, columns)

        await self._journal.run(record, Durability.POWER_CUT)

    async def remove(self, id: str) -> None:
        """Forget a checkpoint. *Idempotent.*"""
        await self._journal.run(lambda db: _delete(db, id))

    async def pause(self, checkpoint: CheckpointRow, *, deadline_ns: int, paused_ns: int) -> None:
        """Record that a running sandbox is paused, and what it goes on from. *Not idempotent.*

        Raises:
            NotFoundError: `sandbox_not_found`; it does not run. Nothing was recorded.
        """

        columns = rows.checkpoint_columns(checkpoint, self._sealing)

        def pause(db: Database) -> None:
            _insert(db, columns)
            _change(
                db,
                """UPDATE sandboxes SET state = 'paused', checkpoint_id = ?, deadline_ns = ?,
                paused_ns = ? WHERE id = ? AND state = 'running'""",
                [checkpoint.id, deadline_ns, paused_ns, checkpoint.sandbox_id],
            )

        await self._journal.run(pause, Durability.POWER_CUT)

    async def resume(
        self,
        sandbox_id: str,
        *,
        clone_id: str,
        receipt: IdentityReceipt,
        deadline_ns: int,
        clock_offset_ns: int,
    ) -> None:
        """Record that a paused sandbox runs, and forget what it went on from. *Not idempotent.*

        Raises:
            NotFoundError: `sandbox_not_found`; it is not paused.
        """

        def resume(db: Database) -> None:
            spent = [
                row["checkpoint_id"]
                for row in db.query(
                    "SELECT checkpoint_id FROM sandboxes WHERE id = ? AND state = 'paused'",
                    [sandbox_id],
                )
            ]
            _change(
                db,
                """UPDATE sandboxes SET state = 'running', checkpoint_id = NULL, paused_ns = NULL,
                clone_id = ?, receipt = ?, deadline_ns = ?, clock_offset_ns = ?
                WHERE id = ? AND state = 'paused'""",
                [clone_id, rows.receipt_text(receipt), deadline_ns, clock_offset_ns, sandbox_id],
            )
            for id in spent:
                _delete(db, id)

        await self._journal.run(resume)

    async def move(
        self,
        sandbox_id: str,
        *,
        clone_id: str,
        receipt: IdentityReceipt,
        clock_offset_ns: int,
    ) -> None:
        """Record that a running sandbox has another machine. *Idempotent.*

        Raises:
            NotFoundError: `sandbox_not_found`; it does not run.
        """
        arguments = [clone_id, rows.receipt_text(receipt), clock_offset_ns, sandbox_id]
        await self._journal.run(
            lambda db: _change(
                db,
                """UPDATE sandboxes SET clone_id = ?, receipt = ?, clock_offset_ns = ?
                WHERE id = ? AND state = 'running'""",
                arguments,
            )
        )


def _insert(db: Database, columns: dict[str, Any]) -> None:
    try:
        db.table("checkpoints").insert(columns)
    except sqlite3.IntegrityError as err:
        if "checkpoints.name" not in str(err):
            raise
        raise ConflictError(
            f"there is a checkpoint {columns['name']!r} already",
            code="checkpoint_exists",
            remedy="remove it first, or choose another name",
        ) from None


def _delete(db: Database, id: str) -> None:
    db.execute("DELETE FROM checkpoints WHERE id = ?", [id])


def _change(db: Database, sql: str, arguments: Sequence[object]) -> None:
    if db.execute(sql, arguments).rowcount == 0:
        raise NotFoundError("there is no such sandbox in that state", code="sandbox_not_found")
