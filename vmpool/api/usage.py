"""Usage: what a tenant has and may have; its bodies beside it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

from vmpool.api.route import answer
from vmpool.errors import ForbiddenError

if TYPE_CHECKING:
    from aiohttp import web

    from vmpool.api.route import Call


class UsageQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose; your own tenant's when left out, another's for operators."""

    tenant: Annotated[str, Meta(pattern="^[a-z0-9]{1,64}$")] | None = None


class Resources(Struct, frozen=True, kw_only=True):
    """So much of each; of limits null for none.

    `sandboxes`, `vcpus` and `memory_bytes` are of machines, those of runs too; `disk_bytes` of
    checkpoints and paused sandboxes. What is on its way counts.
    """

    sandboxes: int | None
    paused: int | None
    checkpoints: int | None
    vcpus: int | None
    memory_bytes: int | None
    disk_bytes: int | None
    creates_per_minute: int | None


class UsageAnswer(Struct, frozen=True, kw_only=True):
    """What a tenant has, and what it may have."""

    tenant: str
    used: Resources
    limits: Resources


async def read(call: Call, query: UsageQuery) -> web.Response:
    """Return what a tenant has and may have, now."""
    owner = query.tenant or call.caller.owner
    if owner != call.caller.owner and not call.caller.operates:
        raise ForbiddenError(
            "other tenants' usage takes a token with the scope 'operator'", code="scope_missing"
        )
    quotas = call.host.quotas
    await quotas.refresh()
    used = asdict(quotas.used(owner)) | {"creates_per_minute": quotas.recent_creates(owner)}
    return answer(
        UsageAnswer(
            tenant=owner, used=Resources(**used), limits=Resources(**asdict(quotas.of(owner)))
        )
    )
