"""Tenants: whose tokens, sandboxes and checkpoints there are, and how much of it each may have."""

from __future__ import annotations

import json
import re
import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmpool.errors import ConflictError, InvalidRequestError, NotFoundError, UnauthorizedError
from vmpool.journal import Durability
from vmpool.model import new_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlite_utils import Database

    from vmpool.journal import Journal

LOCAL = "local"
"""The operator's own tenant: of the host's command line, and of everybody where no tokens are."""

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
"""What tenants may be called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRow:
    """A tenant.

    Attributes:
        name: Unique; what people call it.
        quota: Fields of `quota.Quota` that differ from the settings; `None` for no limit.
    """

    id: str
    name: str
    quota: dict[str, int | None] = field(default_factory=dict)
    created_ns: int


class Tenants:
    """The tenants of a journal; all verbs raise as `Journal.run` does."""

    def __init__(self, journal: Journal, now_ns: Callable[[], int]) -> None:
        self._journal = journal
        self._now_ns = now_ns

    async def add(self, name: str, quota: dict[str, int | None]) -> TenantRow:
        """Make a tenant; survives a power cut. *Not idempotent.*

        Raises:
            InvalidRequestError: `tenant_name_invalid`.
            ConflictError: `tenant_exists`.
        """
        _check(name)
        row = TenantRow(id=new_id(), name=name, quota=quota, created_ns=self._now_ns())
        await self._journal.run(lambda db: insert(db, row), Durability.POWER_CUT)
        return row

    async def all(self) -> list[TenantRow]:
        """Return all tenants by name."""
        rows = await self._journal.run(
            lambda db: [*db.table("tenants").rows_where(order_by="name")]
        )
        return [_tenant(row) for row in rows]

    async def find(self, id_or_name: str) -> TenantRow:
        """Return one tenant; an id goes before a name.

        Raises:
            NotFoundError: `tenant_not_found`.
        """
        return await self._journal.run(lambda db: find(db, id_or_name))

    async def quotas(self) -> dict[str, dict[str, int | None]]:
        """Return what differs from the settings, by tenant's id."""
        rows = await self._journal.run(lambda db: [*db.query("SELECT id, quota FROM tenants")])
        return {row["id"]: json.loads(row["quota"]) for row in rows}

    async def change(
        self, id_or_name: str, *, name: str | None, quota: dict[str, int | None]
    ) -> TenantRow:
        """Change what a tenant is called and what it may have. *Idempotent.*

        Args:
            name: `None` to leave it.
            quota: Takes the place of all that was set.

        Raises:
            NotFoundError: `tenant_not_found`.
            InvalidRequestError: `tenant_name_invalid`.
            ConflictError: `tenant_exists`.
        """
        if name is not None:
            _check(name)

        def change(db: Database) -> TenantRow:
            found = find(db, id_or_name)
            try:
                db.execute(
                    "UPDATE tenants SET name = ?, quota = ? WHERE id = ?",
                    [name or found.name, json.dumps(quota), found.id],
                )
            except sqlite3.IntegrityError:
                raise _exists(str(name)) from None
            return find(db, found.id)

        return await self._journal.run(change, Durability.POWER_CUT)

    async def remove(self, id_or_name: str) -> None:
        """Forget a tenant, and make its tokens useless; survives a power cut.

        The audit log keeps what it did.

        Raises:
            NotFoundError: `tenant_not_found`.
            ConflictError: `tenant_in_use`; something is its own, or it is the operator's.
        """
        now_ns = self._now_ns()

        def remove(db: Database) -> None:
            found = find(db, id_or_name)
            _require_unused(db, found)
            db.execute(
                "UPDATE tokens SET revoked_ns = coalesce(revoked_ns, ?) WHERE tenant_id = ?",
                [now_ns, found.id],
            )
            db.execute("DELETE FROM builds WHERE owner = ?", [found.id])
            db.execute("DELETE FROM tenants WHERE id = ?", [found.id])

        await self._journal.run(remove, Durability.POWER_CUT)


def insert(db: Database, row: TenantRow) -> None:
    """Add a tenant within a transaction.

    Raises:
        ConflictError: `tenant_exists`.
    """
    columns = [row.id, row.name, json.dumps(row.quota), row.created_ns]
    try:
        db.execute("INSERT INTO tenants (id, name, quota, created_ns) VALUES (?, ?, ?, ?)", columns)
    except sqlite3.IntegrityError:
        raise _exists(row.name) from None


def find(db: Database, id_or_name: str) -> TenantRow:
    """Return one tenant within a transaction; raises as `Tenants.find`."""
    found = [
        *db.query(
            "SELECT * FROM tenants WHERE id = :it OR name = :it ORDER BY id != :it LIMIT 1",
            {"it": id_or_name},
        )
    ]
    if not found:
        raise NotFoundError(
            f"there is no tenant {id_or_name!r}",
            code="tenant_not_found",
            remedy="see what there is: vmpool tenant list",
        )
    return _tenant(found[0])


def require_there(db: Database, owner: str) -> None:
    """Make sure, within a transaction, that a tenant was not removed while it was acting.

    Raises:
        UnauthorizedError: It was; what it was about to have would be nobody's.
    """
    gone = db.query(
        """SELECT 1 FROM tokens WHERE tenant_id = :id
        AND NOT EXISTS (SELECT 1 FROM tenants WHERE id = :id) LIMIT 1""",
        {"id": owner},
    )
    if any(gone):
        raise UnauthorizedError("the tenant of this token was removed meanwhile")


def _require_unused(db: Database, tenant: TenantRow) -> None:
    (held,) = db.query(
        """SELECT (SELECT count(*) FROM sandboxes WHERE owner = :id AND ended_ns IS NULL) +
        (SELECT count(*) FROM checkpoints WHERE owner = :id) +
        (SELECT count(*) FROM templates WHERE name LIKE :id || '/%') AS number""",
        {"id": tenant.id},
    )
    if tenant.id == LOCAL:
        raise ConflictError("the operator's own tenant stays", code="tenant_in_use")
    if held["number"]:
        raise ConflictError(
            f"tenant {tenant.name!r} has sandboxes, checkpoints or templates",
            code="tenant_in_use",
            remedy="kill its sandboxes and remove its checkpoints and templates first",
        )


def _tenant(row: dict[str, Any]) -> TenantRow:
    return TenantRow(**row | {"quota": json.loads(row["quota"])})


def _check(name: str) -> None:
    if NAME.fullmatch(name) is None:
        raise InvalidRequestError(
            f"{name!r} is no name for a tenant",
            code="tenant_name_invalid",
            remedy="use up to 63 lower-case letters, digits and dashes",
        )


def _exists(name: str) -> ConflictError:
    return ConflictError(f"there is a tenant {name!r} already", code="tenant_exists")
