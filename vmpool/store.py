"""Store: what was promised, in SQLite: images, templates, tokens, sandboxes, and who did what.

It says what should be; what is, the kernel and the run directory say, and the host compares the two
when it starts. Times are Unix nanoseconds.

Every write has survived the death of this process when its call returns. What a power cut may take
back is the last moments of sandboxes and audit, when no sandbox lives on either; tokens are synced.
When a call is cancelled, its write may have happened or may happen yet.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import sqlite3
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

from vmpool.errors import ConflictError, NotFoundError
from vmpool.journal import Durability, Journal
from vmpool.lifecycle import EndReason, SandboxState
from vmpool.model import new_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import TracebackType

    from sqlite_utils import Database

TOKEN_PATTERN = re.compile(r"e2b_[0-9a-f]{40}")
"""What tokens look like; older E2B SDKs refuse any that do not begin so."""

LAST_USED_STEP_NS = 60 * 10**9
"""How old `last_used_ns` may be: a write a minute and token, not one a request."""

DETAIL_BYTES = 512
"""What an audit entry's detail may take; one that would take more is cut."""

KEEP_ENDED_NS = 7 * 24 * 3600 * 10**9
KEEP_ENDED = 100_000
KEEP_AUDIT = 1_000_000
"""How much of the past is kept: a week of ended sandboxes, and rows within reason."""

PRUNE_EVERY = 1000
"""New rows of sandboxes and audit between two prunings, while the journal is open."""

SCHEMA = (
    (
        """CREATE TABLE images (
            digest TEXT PRIMARY KEY, name TEXT NOT NULL, size_bytes INTEGER NOT NULL,
            created_ns INTEGER NOT NULL) STRICT""",
        """CREATE TABLE templates (
            name TEXT PRIMARY KEY, image_digest TEXT NOT NULL REFERENCES images (digest),
            snapshot_id TEXT NOT NULL, limits TEXT NOT NULL, memory_bytes INTEGER NOT NULL,
            vcpus INTEGER NOT NULL, disk_bytes INTEGER NOT NULL,
            created_ns INTEGER NOT NULL) STRICT""",
        """CREATE TABLE tokens (
            id TEXT PRIMARY KEY, name TEXT NOT NULL, hash BLOB NOT NULL UNIQUE,
            created_ns INTEGER NOT NULL, last_used_ns INTEGER, revoked_ns INTEGER) STRICT""",
        """CREATE TABLE sandboxes (
            id TEXT PRIMARY KEY, template TEXT NOT NULL, clone_id TEXT NOT NULL,
            token_id TEXT REFERENCES tokens (id), state TEXT NOT NULL, created_ns INTEGER NOT NULL,
            deadline_ns INTEGER, metadata TEXT NOT NULL, ended_ns INTEGER, end_reason TEXT,
            CHECK ((state = 'ended') = (ended_ns IS NOT NULL AND end_reason IS NOT NULL))
            ) STRICT""",
        "CREATE INDEX sandboxes_by_end ON sandboxes (ended_ns)",
        """CREATE TABLE audit (
            id INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL, token_id TEXT, action TEXT NOT NULL,
            subject TEXT NOT NULL, detail TEXT NOT NULL, outcome TEXT NOT NULL) STRICT""",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """An image that is in the state directory."""

    digest: str
    name: str
    size_bytes: int
    created_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateRow:
    """A name for a snapshot, with what makes it again should the snapshot not fit any more.

    Attributes:
        limits: Fields of `policy.Limits`.
    """

    name: str
    image_digest: str
    snapshot_id: str
    limits: dict[str, Any] = field(default_factory=dict)
    memory_bytes: int
    vcpus: int
    disk_bytes: int
    created_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """A token, without what would let anyone use it.

    Attributes:
        last_used_ns: To the minute; `None` when it never was.
        revoked_ns: `None` while it is good.
    """

    id: str
    name: str
    created_ns: int
    last_used_ns: int | None = None
    revoked_ns: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRow:
    """A sandbox that was promised to somebody.

    Attributes:
        clone_id: Names its directory in the run directory.
        token_id: The owner; `None` on a server without tokens.
        deadline_ns: When it ends by itself; `None` for never.
        ended_ns: Set, with `end_reason`, exactly when `state` is `ended`.
    """

    id: str
    template: str
    clone_id: str
    token_id: str | None
    state: SandboxState
    created_ns: int
    deadline_ns: int | None
    metadata: dict[str, str] = field(default_factory=dict)
    ended_ns: int | None = None
    end_reason: EndReason | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRow:
    """One thing that somebody did or tried.

    Attributes:
        outcome: `ok` or the code of the error.
    """

    time_ns: int
    token_id: str | None
    action: str
    subject: str
    detail: dict[str, Any] = field(default_factory=dict)
    outcome: str = "ok"


class Store:
    """The journal's tables as verbs. An async context manager.

    Args:
        path: The SQLite file; made when missing.
        now_ns: The clock.

    All verbs raise `StoreError` and `DiskFullError` as `Journal.run` does.
    """

    def __init__(self, path: Path, *, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._journal = Journal(path, SCHEMA)
        self._now_ns = now_ns
        self._grown = 0

    async def __aenter__(self) -> Self:
        """Open the file; raises as `Journal.__aenter__` does."""
        await self._journal.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._journal.__aexit__(exc_type, exc, traceback)

    # Images and templates.

    async def save_image(self, image: ImageRow) -> None:
        """Record an image, or what is new about it. *Idempotent.*"""
        row = asdict(image)
        await self._journal.run(lambda db: db.table("images").upsert(row, pk="digest"))

    async def images(self) -> list[ImageRow]:
        """Return all images, the newest first."""
        return [ImageRow(**row) for row in await self._rows("images", "created_ns DESC")]

    async def remove_image(self, digest: str) -> None:
        """Forget an image.

        Raises:
            NotFoundError: `image_not_found`.
            ConflictError: `image_in_use`; templates are made of it.
        """

        def remove(db: Database) -> None:
            try:
                cursor = db.execute("DELETE FROM images WHERE digest = ?", [digest])
            except sqlite3.IntegrityError:
                raise ConflictError(
                    f"templates are made of image {digest!r}",
                    code="image_in_use",
                    remedy="remove these templates first",
                ) from None
            if cursor.rowcount == 0:
                raise NotFoundError(f"there is no image {digest!r}", code="image_not_found")

        await self._journal.run(remove)

    async def save_template(self, template: TemplateRow) -> None:
        """Record a template, or what is new about it. *Idempotent.*

        Raises:
            NotFoundError: `image_not_found`; its image was not recorded before.
        """
        row = asdict(template) | {"limits": json.dumps(template.limits)}

        def save(db: Database) -> None:
            try:
                db.table("templates").upsert(row, pk="name")
            except sqlite3.IntegrityError:
                message = f"there is no image {template.image_digest!r}"
                raise NotFoundError(message, code="image_not_found") from None

        await self._journal.run(save)

    async def templates(self) -> list[TemplateRow]:
        """Return all templates by name."""
        return [_template(row) for row in await self._rows("templates", "name")]

    async def template(self, name: str) -> TemplateRow:
        """Return one template.

        Raises:
            NotFoundError: `template_not_found`.
        """
        rows = await self._rows("templates", "name", "name = ?", [name])
        if not rows:
            raise NotFoundError(f"there is no template {name!r}", code="template_not_found")
        return _template(rows[0])

    async def remove_template(self, name: str) -> None:
        """Forget a template.

        Raises:
            NotFoundError: `template_not_found`.
        """

        def remove(db: Database) -> None:
            if db.execute("DELETE FROM templates WHERE name = ?", [name]).rowcount == 0:
                raise NotFoundError(f"there is no template {name!r}", code="template_not_found")

        await self._journal.run(remove)

    # Tokens.

    async def add_token(self, name: str) -> tuple[str, TokenRow]:
        """Make a token and return it, this once, with its row; survives a power cut."""
        token = "e2b_" + secrets.token_hex(20)
        token_row = TokenRow(id=new_id(), name=name, created_ns=self._now_ns())
        row = asdict(token_row) | {"hash": _hash(token)}
        await self._journal.run(lambda db: db.table("tokens").insert(row), Durability.POWER_CUT)
        return token, token_row

    async def find_token(self, token: str) -> TokenRow | None:
        """Return the row of a good token; `None` for one that is unknown, revoked or malformed."""
        if TOKEN_PATTERN.fullmatch(token) is None:
            return None
        wanted, now_ns = _hash(token), self._now_ns()

        def find(db: Database) -> TokenRow | None:
            rows = list(
                db.query("SELECT * FROM tokens WHERE hash = ? AND revoked_ns IS NULL", [wanted])
            )
            if not rows or not hmac.compare_digest(rows[0]["hash"], wanted):
                return None
            row = _token(rows[0])
            if row.last_used_ns is None or now_ns - row.last_used_ns >= LAST_USED_STEP_NS:
                db.execute("UPDATE tokens SET last_used_ns = ? WHERE id = ?", [now_ns, row.id])
            return row

        return await self._journal.run(find)

    async def revoke_token(self, token_id: str) -> None:
        """Make a token useless; survives a power cut. *Idempotent.*

        Raises:
            NotFoundError: `token_not_found`.
        """
        now_ns = self._now_ns()

        def revoke(db: Database) -> None:
            cursor = db.execute(
                "UPDATE tokens SET revoked_ns = coalesce(revoked_ns, ?) WHERE id = ?",
                [now_ns, token_id],
            )
            if cursor.rowcount == 0:
                raise NotFoundError(f"there is no token {token_id!r}", code="token_not_found")

        await self._journal.run(revoke, Durability.POWER_CUT)

    async def tokens(self) -> list[TokenRow]:
        """Return all tokens, revoked ones too, the oldest first."""
        return [_token(row) for row in await self._rows("tokens", "created_ns, id")]

    # Sandboxes.

    async def record_sandbox(self, sandbox: SandboxRow) -> None:
        """Record a new sandbox, before anyone is told of it. *Not idempotent.*"""
        row = asdict(sandbox) | {"metadata": json.dumps(sandbox.metadata)}
        await self._grow("sandboxes", row)

    async def sandbox(self, sandbox_id: str) -> SandboxRow:
        """Return one sandbox, open or ended.

        Raises:
            NotFoundError: `sandbox_not_found`; never was, or ended so long ago that it was pruned.
        """
        rows = await self._rows("sandboxes", "id", "id = ?", [sandbox_id])
        if not rows:
            raise _unknown_sandbox(sandbox_id)
        return _sandbox(rows[0])

    async def open_sandboxes(self) -> list[SandboxRow]:
        """Return what was promised and not ended, the oldest first."""
        rows = await self._rows("sandboxes", "created_ns, id", "ended_ns IS NULL")
        return [_sandbox(row) for row in rows]

    async def set_deadline(self, sandbox_id: str, deadline_ns: int | None) -> None:
        """Move an open sandbox's deadline; one that has ended keeps its own. *Idempotent.*

        Raises:
            NotFoundError: `sandbox_not_found`.
        """
        sql = """UPDATE sandboxes
            SET deadline_ns = CASE WHEN ended_ns IS NULL THEN ? ELSE deadline_ns END WHERE id = ?"""
        await self._change_sandbox(sandbox_id, sql, [deadline_ns, sandbox_id])

    async def end_sandbox(self, sandbox_id: str, reason: EndReason) -> None:
        """Record that a sandbox has ended; the first reason stays. *Idempotent.*

        Raises:
            NotFoundError: `sandbox_not_found`.
        """
        sql = """UPDATE sandboxes SET state = 'ended', ended_ns = coalesce(ended_ns, ?),
            end_reason = coalesce(end_reason, ?) WHERE id = ?"""
        await self._change_sandbox(sandbox_id, sql, [self._now_ns(), reason.value, sandbox_id])

    async def end_all_open(self, reason: EndReason) -> int:
        """End all open sandboxes, for a start that found none of them alive; return how many."""
        arguments = [self._now_ns(), reason.value]
        return await self._journal.run(
            lambda db: (
                db.execute(
                    """UPDATE sandboxes SET state = 'ended', ended_ns = ?, end_reason = ?
                WHERE ended_ns IS NULL""",
                    arguments,
                ).rowcount
            )
        )

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

    # Audit.

    async def audit(
        self,
        action: str,
        *,
        subject: str,
        token_id: str | None,
        outcome: str = "ok",
        detail: dict[str, Any] | None = None,
    ) -> None:
        """Record that somebody did or tried something. *Not idempotent.*"""
        row = AuditRow(
            time_ns=self._now_ns(),
            token_id=token_id,
            action=action,
            subject=subject,
            detail=detail or {},
            outcome=outcome,
        )
        await self._grow("audit", asdict(row) | {"detail": _detail(row.detail)})

    async def audit_log(self, limit: int) -> list[AuditRow]:
        """Return the last `limit` entries, the newest first."""
        rows = await self._journal.run(
            lambda db: list(db.query("SELECT * FROM audit ORDER BY id DESC LIMIT ?", [limit]))
        )
        return [_audit(row) for row in rows]

    async def prune_audit(self, *, keep: int) -> int:
        """Forget all but the last `keep` entries; return how many."""
        return await self._journal.run(
            lambda db: (
                db.execute(
                    """DELETE FROM audit WHERE id IN (
                    SELECT id FROM audit ORDER BY id DESC LIMIT -1 OFFSET ?)""",
                    [keep],
                ).rowcount
            )
        )

    async def prune(self) -> None:
        """Forget what is older or more than is kept of the past."""
        long_ago_ns = self._now_ns() - KEEP_ENDED_NS
        await self.prune_sandboxes(ended_before_ns=long_ago_ns, keep=KEEP_ENDED)
        await self.prune_audit(keep=KEEP_AUDIT)

    async def _grow(self, table: str, row: dict[str, Any]) -> None:
        """Insert into a table that would grow for as long as the host serves."""
        self._grown += 1
        if self._grown >= PRUNE_EVERY:
            self._grown = 0
            await self.prune()  # first: who meets an error has no row
        await self._journal.run(lambda db: db.table(table).insert(row))

    async def _rows(
        self, table: str, order: str, where: str | None = None, arguments: list[Any] | None = None
    ) -> list[dict[str, Any]]:
        return await self._journal.run(
            lambda db: list(db.table(table).rows_where(where, arguments, order_by=order))
        )


def _hash(token: str) -> bytes:
    """A plain hash will do: a token has 160 random bits, there is no dictionary of such."""
    return hashlib.blake2b(token.encode(), digest_size=32).digest()


def _unknown_sandbox(sandbox_id: str) -> NotFoundError:
    return NotFoundError(f"there is no sandbox {sandbox_id!r}", code="sandbox_not_found")


def _template(row: dict[str, Any]) -> TemplateRow:
    return TemplateRow(**row | {"limits": json.loads(row["limits"])})


def _token(row: dict[str, Any]) -> TokenRow:
    return TokenRow(**{name: value for name, value in row.items() if name != "hash"})


def _sandbox(row: dict[str, Any]) -> SandboxRow:
    reason = row["end_reason"]
    return SandboxRow(
        **row
        | {
            "state": SandboxState(row["state"]),
            "metadata": json.loads(row["metadata"]),
            "end_reason": None if reason is None else EndReason(reason),
        }
    )


def _detail(detail: dict[str, Any]) -> str:
    """Return an audit entry's detail as JSON within `DETAIL_BYTES`."""
    text = json.dumps(detail)
    if len(text) <= DETAIL_BYTES:
        return text
    return json.dumps({"cut": text[: DETAIL_BYTES // 2 - 16]})  # escaped, it may double


def _audit(row: dict[str, Any]) -> AuditRow:
    values = {name: value for name, value in row.items() if name != "id"}
    return AuditRow(**values | {"detail": json.loads(row["detail"])})
