"""Status: whether the server is well, what it has counted, what it offers, what you did."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from aiohttp import web

from vmpool.api import bodies, views
from vmpool.api.route import answer

if TYPE_CHECKING:
    from vmpool.api.route import Call

DOCUMENT: Final = web.AppKey("openapi", bytes)
VERSION: Final = version("vmpool")

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus text exposition


async def health(call: Call, _: bodies.Nothing) -> web.Response:
    """Say whether the server serves; open to all, so it names no owner and no sandbox."""
    facts = call.host.facts
    return answer(
        bodies.Health(
            ok=True,
            version=VERSION,
            accelerator=facts.accelerator.value,
            transport=facts.transport.value,
            pools={
                status.name: views.pool(status.census) for status in call.host.catalogue.statuses
            },
        )
    )


async def metrics(call: Call, _: bodies.Nothing) -> web.Response:
    """Return what was counted, for Prometheus."""
    return web.Response(body=call.host.metrics.expose(), headers={"Content-Type": METRICS_TYPE})


async def document(call: Call, _: bodies.Nothing) -> web.Response:
    """Return the description of this interface."""
    return web.Response(body=call.request.app[DOCUMENT], content_type="application/json")


async def audit(call: Call, query: bodies.ListAuditQuery) -> web.Response:
    """List what the caller did, latest first."""
    rows = await call.host.store.audit_log(token=call.caller.owner, limit=query.limit)
    return answer(
        bodies.AuditList(
            entries=[
                bodies.AuditEntry(
                    at=views.rfc3339(row.at_ns),
                    action=row.action,
                    subject=row.subject,
                    detail=row.detail,
                )
                for row in rows
            ]
        )
    )
