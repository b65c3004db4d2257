"""Audit: who did what, told to those who administer the server; its bodies beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from msgspec import Meta, Struct

from vmpool.api import views
from vmpool.api.route import answer
from vmpool.store import AuditFilter

if TYPE_CHECKING:
    from aiohttp import web

    from vmpool.api.route import Call
    from vmpool.store import AuditRow


class AuditQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which entries; `owner` is a tenant's id, and what is left out matches all."""

    owner: Annotated[str, Meta(pattern="^[a-z0-9]{1,64}$")] | None = None
    token: Annotated[str, Meta(pattern="^[a-z0-9]{1,64}$")] | None = None
    action: Annotated[str, Meta(pattern="^[a-z.]{1,64}$")] | None = None
    sandbox: Annotated[str, Meta(pattern="^[a-z0-9]{1,64}$")] | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Annotated[str, Meta(pattern="^[0-9]{1,18}$")] | None = None


class AuditEntry(Struct, frozen=True, kw_only=True):
    """One thing that somebody did or tried.

    `owner` is the tenant's id and `token` that of its token, null where none was shown or it was
    a sandbox's own; `subject` what it was done to; and `outcome` is `ok`, `cancelled` or the
    error's code.
    """

    at: str
    owner: str
    token: str | None
    action: str
    subject: str
    detail: dict[str, Any]
    outcome: str


class AuditList(Struct, frozen=True, kw_only=True):
    """Who did what, the newest first; `next_cursor` asks for what was before."""

    entries: list[AuditEntry]
    next_cursor: str | None


async def read(call: Call, query: AuditQuery) -> web.Response:
    """Return a page of the audit log; entries that come meanwhile do not shift it.

    Others' entries are for operators alone; who asks for them without being one finds none.
    """
    own = call.caller.owner
    if not call.caller.operates and query.owner not in {None, own}:
        return answer(AuditList(entries=[], next_cursor=None))
    wanted = AuditFilter(
        tenant_id=query.owner if call.caller.operates else own,
        token_id=query.token,
        action=query.action,
        subject=query.sandbox,
        before=None if query.cursor is None else int(query.cursor),
    )
    found = await call.host.store.audit.entries(query.limit + 1, wanted)
    page = found[: query.limit]
    more = len(found) > len(page)
    return answer(
        AuditList(
            entries=[_entry(row) for row in page],
            next_cursor=str(page[-1].id) if more else None,
        )
    )


def _entry(row: AuditRow) -> AuditEntry:
    return AuditEntry(
        at=views.rfc3339(row.time_ns),
        owner=row.tenant_id,
        token=row.token_id,
        action=row.action,
        subject=row.subject,
        detail=row.detail,
        outcome=row.outcome,
    )
