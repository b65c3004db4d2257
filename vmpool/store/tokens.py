"""Tokens: who may use the server, and for what; of a token itself only a hash is kept."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from vmpool.errors import NotFoundError
from vmpool.journal import Durability
from vmpool.model import new_id
from vmpool.scope import Scope
from vmpool.store import tenants
from vmpool.store.tenants import TenantRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlite_utils import Database

    from vmpool.journal import Journal

TOKEN_PATTERN = re.compile(r"e2b_[0-9a-f]{40}")
"""What tokens look like; older E2B SDKs refuse any that do not begin so."""

LAST_USED_STEP_NS = 60 * 10**9
"""How old `last_used_ns` may be: a write a minute and token, not one a request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """A token, without what would let anyone use it.

    Attributes:
        tenant_id: Whose it is.
        scopes: What it may do.
        last_used_ns: To the minute; `None` when it never was.
        revoked_ns: `None` while it is good.
    """

    id: str
    name: str
    tenant_id: str
    scopes: frozenset[Scope]
    created_ns: int
    last_used_ns: int | None = None
    revoked_ns: int | None = None


class Tokens:
    """The tokens of a journal; all verbs raise as `Journal.run` does."""

    def __init__(self, journal: Journal, now_ns: Callable[[], int]) -> None:
        self._journal = journal
        self._now_ns = now_ns

    async def add(
        self, name: str, scopes: frozenset[Scope], *, tenant: str | None = None
    ) -> tuple[str, TokenRow]:
        """Make a token and return it, this once, with its row; survives a power cut.

        Args:
            tenant: Id or name; without one the token gets a tenant of its own, of its id.

        Raises:
            NotFoundError: `tenant_not_found`.
        """
        token, id, now_ns = "e2b_" + secrets.token_hex(20), new_id(), self._now_ns()

        def add(db: Database) -> TokenRow:
            if tenant is None:
                tenants.insert(db, TenantRow(id=id, name=id, created_ns=now_ns))
            owner = tenants.find(db, tenant or id).id
            row = TokenRow(id=id, name=name, tenant_id=owner, scopes=scopes, created_ns=now_ns)
            db.table("tokens").insert(_columns(row) | {"hash": _hash(token)})
            return row

        return token, await self._journal.run(add, Durability.POWER_CUT)

    async def find(self, token: str) -> TokenRow | None:
        """Return the row of a good token; `None` for one that is unknown, revoked or malformed."""
        if not is_token(token):
            return None
        wanted, now_ns = _hash(token), self._now_ns()

        def find(db: Database) -> TokenRow | None:
            rows = [
                *db.query("SELECT * FROM tokens WHERE hash = ? AND revoked_ns IS NULL", [wanted])
            ]
            if not rows or not hmac.compare_digest(rows[0]["hash"], wanted):
                return None
            row = _token(rows[0])
            if row.last_used_ns is None or now_ns - row.last_used_ns >= LAST_USED_STEP_NS:
                db.execute("UPDATE tokens SET last_used_ns = ? WHERE id = ?", [now_ns, row.id])
            return row

        return await self._journal.run(find)

    async def revoke(self, token_id: str) -> None:
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

    async def list(self) -> list[TokenRow]:
        """Return all tokens, revoked ones too, the oldest first."""
        rows = await self._journal.run(
            lambda db: [*db.table("tokens").rows_where(order_by="created_ns, id")]
        )
        return [_token(row) for row in rows]


def is_token(text: str) -> bool:
    """Whether it looks like a token, good or not."""
    return TOKEN_PATTERN.fullmatch(text) is not None


def _hash(token: str) -> bytes:
    """A plain hash will do: a token has 160 random bits, there is no dictionary of such."""
    return hashlib.blake2b(token.encode(), digest_size=32).digest()


def _token(row: dict[str, Any]) -> TokenRow:
    values = {name: value for name, value in row.items() if name != "hash"}
    return TokenRow(**values | {"scopes": frozenset(map(Scope, row["scopes"].split()))})


def _columns(row: TokenRow) -> dict[str, Any]:
    return asdict(row) | {"scopes": " ".join(sorted(row.scopes))}
