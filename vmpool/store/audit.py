"""Audit: who did what, or tried, as a log that forgets its oldest entries.

What is noted is written a moment later, together with what was noted meanwhile: a write beside an
answer takes processor time from the guest that works on it. The moment is lost with the process.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Any

from vmpool.errors import VmpoolError
from vmpool.journal import insert

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sqlite_utils import Database

    from vmpool.journal import Journal

log = logging.getLogger(__name__)

LINGER = 0.1
"""Seconds that a note waits for others, to be written together with them."""

TOGETHER = 64
"""Notes after which none is waited for any more."""

DETAIL_BYTES = 512
"""What an entry's detail may take; one that would take more is cut."""

KEEP_AUDIT = 250_000
"""Entries that are kept of each tenant: what one does pushes out nobody else's."""

PRUNE_EVERY = 1000
"""New entries of a tenant between two prunings of its own, while the journal is open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One thing that somebody did or tried.

    Attributes:
        tenant_id: Who did it; `token_id` with which token, `None` for none: on a server without
            tokens, with a sandbox's own, or by the server itself.
        outcome: `ok` or the code of the error.
        id: Grows from entry to entry; 0 before it is written.
    """

    time_ns: int
    tenant_id: str
    token_id: str | None
    action: str
    subject: str
    detail: dict[str, Any] = field(default_factory=dict)
    outcome: str = "ok"
    id: int = 0


_COLUMNS = tuple(field.name for field in fields(AuditRow) if field.name != "id")  # SQLite counts


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which entries are wanted; `None` for all.

    Attributes:
        before: Only entries of a smaller id.
    """

    tenant_id: str | None = None
    token_id: str | None = None
    action: str | None = None
    subject: str | None = None
    before: int | None = None


class Audit:
    """The audit log of a journal, to be flushed before that is closed.

    All verbs but `note` and `flush` raise as `Journal.run` does.
    """

    def __init__(self, journal: Journal, now_ns: Callable[[], int]) -> None:
        self._journal = journal
        self._now_ns = now_ns
        self._grown: Counter[str] = Counter()
        self._noted: list[AuditRow] = []
        self._due: asyncio.TimerHandle | None = None
        self._writing: asyncio.Task[None] | None = None
        self.waiting = 0
        """Notes that are not written yet."""

    def note(
        self,
        action: str,
        *,
        subject: str,
        tenant_id: str,
        token_id: str | None,
        outcome: str,
        detail: dict[str, Any],
    ) -> None:
        """Record it soon; what the journal cannot take is told to the log. *Not idempotent.*"""
        entry = AuditRow(
            time_ns=self._now_ns(),
            tenant_id=tenant_id,
            token_id=token_id,
            action=action,
            subject=subject,
            detail=detail,
            outcome=outcome,
        )
        self.waiting += 1
        self._noted.append(entry)
        if len(self._noted) >= TOGETHER:
            self._begin()
        elif self._due is None:
            self._due = asyncio.get_running_loop().call_later(LINGER, self._begin)

    async def flush(self) -> None:
        """Return once all that was noted is written, or lost. *Idempotent.*"""
        while self._noted or self._writing is not None:
            self._begin()
            assert self._writing is not None
            await asyncio.wait({self._writing})

    async def record(
        self,
        action: str,
        *,
        subject: str,
        tenant_id: str,
        token_id: str | None = None,
        outcome: str = "ok",
        detail: dict[str, Any] | None = None,
    ) -> None:
        """Record that somebody did or tried something. *Not idempotent.*"""
        entry = AuditRow(
            time_ns=self._now_ns(),
            tenant_id=tenant_id,
            token_id=token_id,
            action=action,
            subject=subject,
            detail=detail or {},
            outcome=outcome,
        )
        await self._write([entry])

    def _begin(self) -> None:
        """Write what was noted, unless that is being done."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_noted(), name="audit log")

    async def _write_noted(self) -> None:
        try:
            while entries := self._noted:
                self._noted = []
                try:
                    await self._write(entries)
                except VmpoolError as err:
                    for entry in entries:
                        log.error("the audit log lost %s: %s", _told(entry), err)
                except Exception:
                    log.exception("the audit log lost %s", ", ".join(map(_told, entries)))
                finally:
                    self.waiting -= len(entries)
        finally:
            self._writing = None

    async def _shorten(self, tenant_id: str) -> None:
        """Let go of a tenant's oldest entries; what prevents it costs no entry, of nobody."""
        try:
            await self.prune(tenant_id, keep=KEEP_AUDIT)
        except VmpoolError as err:
            log.warning("the audit log of tenant %s stays too long: %s", tenant_id, err)

    async def _write(self, entries: Sequence[AuditRow]) -> None:
        for tenant_id, count in Counter(entry.tenant_id for entry in entries).items():
            self._grown[tenant_id] += count
            if self._grown[tenant_id] >= PRUNE_EVERY:
                del self._grown[tenant_id]
                await self._shorten(tenant_id)
        rows = [
            {name: getattr(entry, name) for name in _COLUMNS} | {"detail": _detail(entry.detail)}
            for entry in entries
        ]
        await self._journal.run(partial(_insert_all, rows=rows))

    async def entries(self, limit: int, wanted: AuditFilter | None = None) -> list[AuditRow]:
        """Return the last `limit` entries that are wanted, those just noted too, newest first."""
        await self.flush()
        members = {} if wanted is None else asdict(wanted)
        before = members.pop("before", None)
        given = {name: value for name, value in members.items() if value is not None}
        where = [f"{name} = ?" for name in given] + ["id < ?"] * (before is not None)
        arguments = [*given.values(), *([] if before is None else [before])]
        rows = await self._journal.run(
            lambda db: [
                *db.table("audit").rows_where(
                    " AND ".join(where) or None, arguments, order_by="id DESC", limit=limit
                )
            ]
        )
        return [AuditRow(**row | {"detail": json.loads(row["detail"])}) for row in rows]

    async def prune_all(self, *, keep: int) -> None:
        """Forget all but the last `keep` entries of each tenant."""
        rows = await self._journal.run(
            lambda db: [*db.query("SELECT DISTINCT tenant_id FROM audit")]
        )
        for row in rows:
            await self.prune(row["tenant_id"], keep=keep)

    async def prune(self, tenant_id: str, *, keep: int) -> int:
        """Forget all but the last `keep` entries of a tenant; return how many."""
        return await self._journal.run(
            lambda db: (
                db.execute(
                    """DELETE FROM audit WHERE tenant_id = :it AND id <= (
                    SELECT id FROM audit WHERE tenant_id = :it
                    ORDER BY id DESC LIMIT 1 OFFSET :keep)""",
                    {"it": tenant_id, "keep": keep},
                ).rowcount
            )
        )


def _insert_all(db: Database, *, rows: Sequence[Mapping[str, object]]) -> None:
    for row in rows:
        insert(db, "audit", row)


def _told(entry: AuditRow) -> str:
    return f"{entry.action} of {entry.subject} by {entry.tenant_id}"


def _detail(detail: dict[str, Any]) -> str:
    """Return an audit entry's detail as JSON within `DETAIL_BYTES`."""
    text = json.dumps(detail)
    if len(text) <= DETAIL_BYTES:
        return text
    return json.dumps({"cut": text[: DETAIL_BYTES // 2 - 16]})  # escaped, it may double
