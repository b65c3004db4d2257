"""Store: what was promised, in SQLite: templates, tokens, sandboxes, checkpoints, and who did what.

It says what should be; what is, the kernel and the run directory say, and the host compares the two
when it starts. Times are Unix nanoseconds.

Every write has survived the death of this process when its call returns. What a power cut may take
back is the last moments of the audit log and of sandboxes that run, when no machine lives on
either; tokens, paused sandboxes and checkpoints are synced.
When a call is cancelled, its write may have happened or may happen yet.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Self

from vmpool.errors import NotFoundError
from vmpool.journal import Journal, insert
from vmpool.store import rows
from vmpool.store.answers import Answers
from vmpool.store.audit import KEEP_AUDIT, Audit
from vmpool.store.builds import Builds
from vmpool.store.checkpoints import Checkpoints
from vmpool.store.exposures import Exposures
from vmpool.store.rows import ImageRow, SandboxRow, TemplateRow
from vmpool.store.schema import SCHEMA
from vmpool.store.tenants import LOCAL, Tenants, require_there
from vmpool.store.tokens import Tokens
from vmpool.template_key import owner_of
from vmpool.trust.sealing import Sealing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from sqlite_utils import Database

    from vmpool.lifecycle import EndReason

SEAL_KEY = "seal-key"
"""File beside the journal: what secrets in it are sealed with."""

KEEP_ENDED_NS = 7 * 24 * 3600 * 10**9
KEEP_ENDED = 100_000
"""How much of the past is kept: a week of ended sandboxes, and rows within reason."""

PRUNE_EVERY = 1000
"""New rows of sandboxes between two prunings, while the journal is open."""


class Store:
    """The journal's tables as verbs. An async context manager.

    Args:
        path: The SQLite file; made when missing.
        now_ns: The clock.

    Attributes:
        tenants: Whose all of it is.
        tokens: Who may use the server.
        audit: Who did what.
        checkpoints: The states that sandboxes were in, and the turns between them.
        exposures: Who may reach which of their ports.
        answers: What was told to whoever may ask again.
        builds: Of templates, and how they went.

    All verbs raise `StoreError` and `DiskFullError` as `Journal.run` does.
    """

    def __init__(self, path: Path, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._journal = Journal(path, SCHEMA)
        self._sealing = Sealing(path.with_name(SEAL_KEY))
        self.tenants = Tenants(self._journal, now_ns)
        self.tokens = Tokens(self._journal, now_ns)
        self.audit = Audit(self._journal, now_ns)
        self.checkpoints = Checkpoints(self._journal, self._sealing)
        self.exposures = Exposures(self._journal)
        self.builds = Builds(self._journal, now_ns)
        self.answers = Answers(self._journal, now_ns, self._sealing)
        self._now_ns = now_ns
        self._grown = 0

    async def __aenter__(self) -> Self:
        """Open the file, and the key beside it that secrets are sealed with.

        Raises:
            HostError: `seal_key_unusable`.
            StoreError, DiskFullError: As `Journal.__aenter__`.
        """
        await self._journal.__aenter__()  # makes the directory
        try:
            await asyncio.to_thread(self._sealing.open)
        except BaseException:
            await self._journal.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self.audit.flush()
        finally:
            await self._journal.__aexit__(exc_type, exc, traceback)

    def token(self, *, of: str) -> str:
        """Return the token of something that has one for life; it is written down nowhere.

        Args:
            of: What it opens; the same gives the same, until the key beside the journal is lost.
        """
        return self._sealing.token(of=of)

    # Images and templates.

    async def save_image(self, image: ImageRow) -> None:
        """Record an image, or what is new about it. *Idempotent.*"""
        row = asdict(image)
        await self._journal.run(lambda db: db.table("images").upsert(row, pk="digest"))

    async def images(self) -> list[ImageRow]:
        """Return all images, the newest first."""
        return [ImageRow(**row) for row in await self._rows("images", "created_ns DESC")]

    async def save_template(self, template: TemplateRow) -> None:
        """Record a template, or what is new about it. *Idempotent.*

        Raises:
            NotFoundError: `image_not_found`; its image was not recorded before.
            UnauthorizedError: It is a tenant's own, and that was removed meanwhile.
        """
        row = asdict(template)
        row |= {name: json.dumps(row[name]) for name in ("limits", "env")}

        def save(db: Database) -> None:
            require_there(db, owner_of(template.name) or LOCAL)
            try:
                db.table("templates").upsert(row, pk="name")
            except sqlite3.IntegrityError:
                message = f"there is no image {template.image_digest!r}"
                raise NotFoundError(message, code="image_not_found") from None

        await self._journal.run(save)

    async def templates(self) -> list[TemplateRow]:
        """Return all templates by name."""
        return [rows.template(row) for row in await self._rows("templates", "name")]

    async def template(self, name: str) -> TemplateRow:
        """Return one template.

        Raises:
            NotFoundError: `template_not_found`.
        """
        found = await self._rows("templates", "name", "name = ?", [name])
        if not found:
            raise NotFoundError(f"there is no template {name!r}", code="template_not_found")
        return rows.template(found[0])

    async def remove_template(self, name: str) -> None:
        """Forget a template.

        Raises:
            NotFoundError: `template_not_found`.
        """

        def remove(db: Database) -> None:
            if db.execute("DELETE FROM templates WHERE name = ?", [name]).rowcount == 0:
                raise NotFoundError(f"there is no template {name!r}", code="template_not_found")

        await self._journal.run(remove)

    # Sandboxes.

    async def record_sandbox(self, sandbox: SandboxRow) -> None:
        """Record a new sandbox, before anyone is told of it. *Not idempotent.*

        Raises:
            UnauthorizedError: Its tenant was removed meanwhile.
        """
        self._grown += 1
        if self._grown >= PRUNE_EVERY:
            self._grown = 0
            await self._prune_sandboxes()  # first: who meets an error has no row
        row = rows.sandbox_columns(sandbox, self._sealing)

        def record(db: Database) -> None:
            require_there(db, sandbox.owner)
            insert(db, "sandboxes", row)

        await self._journal.run(record)

    async def sandbox(self, sandbox_id: str) -> SandboxRow:
        """Return one sandbox, open or ended.

        Raises:
            NotFoundError: `sandbox_not_found`; never was, or ended so long ago that it was pruned.
        """
        found = await self._rows("sandboxes", "id", "id = ?", [sandbox_id])
        if not found:
            raise _unknown_sandbox(sandbox_id)
        return rows.sandbox(found[0], self._sealing)

    async def open_sandboxes(self) -> list[SandboxRow]:
        """Return what was promised and not ended, the oldest first."""
        found = await self._rows("sandboxes", "created_ns, id", "ended_ns IS NULL")
        return [rows.sandbox(row, self._sealing) for row in found]

    async def bases(self) -> set[str]:
        """Return what sandboxes, ended ones too, and checkpoints are of, and no template."""
        found = await self._journal.run(
            lambda db: list(
                db.query(
                    """SELECT base_id FROM sandboxes WHERE base_id != ''
                    UNION SELECT base_id FROM checkpoints
                    EXCEPT SELECT snapshot_id FROM templates"""
                )
            )
        )
        return {row["base_id"] for row in found}

    async def set_deadline(self, sandbox_id: str, deadline_ns: int | None) -> None:
        """Move an open sandbox's deadline; one that has ended keeps its own. *Idempotent.*

        Raises:
            NotFoundError: `sandbox_not_found`.
        """
        sql = """UPDATE sandboxes
            SET deadline_ns = CASE WHEN ended_ns IS NULL THEN ? ELSE deadline_ns END WHERE id = ?"""
        await self._change_sandbox(sandbox_id, sql, [deadline_ns, sandbox_id])

    async def set_network(self, sandbox_id: str, policy: str) -> None:
        """Note another policy of a sandbox's network, as `egress.text` has it. *Idempotent.*

        Raises:
            NotFoundError: `sandbox_not_found`.
        """
        sql = "UPDATE sandboxes SET network = ? WHERE id = ?"
        await self._change_sandbox(sandbox_id, sql, [policy, sandbox_id])

    async def set_confided(self, sandbox_id: str) -> None:
        """Note that an execution in a sandbox is told secrets of its own. *Idempotent.*

        Raises:
            NotFoundError: `sandbox_not_found`; it has ended.
        """
        sql = "UPDATE sandboxes SET confided = 1 WHERE id = ? AND ended_ns IS NULL"
        await self._change_sandbox(sandbox_id, sql, [sandbox_id])

    async def end_sandbox(self, sandbox_id: str, reason: EndReason) -> None:
        """Record that a sandbox has ended; the first reason stays. *Idempotent.*

        What it would have gone on from is forgotten with it.

        Raises:
            NotFoundError: `sandbox_not_found`.
        """
        arguments = [self._now_ns(), reason.value, sandbox_id]

        def end(db: Database) -> None:
            cursor = db.execute(
                """UPDATE sandboxes SET state = 'ended', ended_ns = coalesce(ended_ns, ?),
                end_reason = coalesce(end_reason, ?), checkpoint_id = NULL WHERE id = ?""",
                arguments,
            )
            if cursor.rowcount == 0:
                raise _unknown_sandbox(sandbox_id)
            db.execute(
                "DELETE FROM checkpoints WHERE sandbox_id = ? AND purpose = 'pause'", [sandbox_id]
            )

        await self._journal.run(end)

    async def prune_sandboxes(self, *, ended_before_ns: int, keep: int) -> int:
        """Forget sandboxes that ended before a time, and all but the last `keep`; return how many.

        Until then an expired sandbox can be told from one that never was.
        """
        return await self._journal.run(
            lambda db: (
                db.execute(
                    """DELETE FROM sandboxes WHERE ended_ns < ? OR id IN (
                    SELECT id FROM sandboxes WHERE ended_ns IS NOT NULL
                    ORDER BY ended_ns DESC, id LIMIT -1 OFFSET ?)""",
                    [ended_before_ns, keep],
                ).rowcount
            )
        )

    async def _change_sandbox(self, sandbox_id: str, sql: str, arguments: list[Any]) -> None:
        def change(db: Database) -> None:
            if db.execute(sql, arguments).rowcount == 0:
                raise _unknown_sandbox(sandbox_id)

        await self._journal.run(change)

    async def prune(self) -> None:
        """Forget what is older or more than is kept of the past."""
        await self._prune_sandboxes()
        await self.audit.prune_all(keep=KEEP_AUDIT)

    async def _prune_sandboxes(self) -> None:
        long_ago_ns = self._now_ns() - KEEP_ENDED_NS
        await self.prune_sandboxes(ended_before_ns=long_ago_ns, keep=KEEP_ENDED)

    async def _rows(
        self, table: str, order: str, where: str | None = None, arguments: list[Any] | None = None
    ) -> list[dict[str, Any]]:
        return await self._journal.run(
            lambda db: list(db.table(table).rows_where(where, arguments, order_by=order))
        )


def _unknown_sandbox(sandbox_id: str) -> NotFoundError:
    return NotFoundError(f"there is no sandbox {sandbox_id!r}", code="sandbox_not_found")
