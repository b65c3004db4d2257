"""Metrics: what guests use, as E2B's clients read it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from vmpool.api import views
from vmpool.api.e2b.control import bodies
from vmpool.api.e2b.operation import answer
from vmpool.gauges import Gauges

if TYPE_CHECKING:
    from vmpool.api.route import Call
    from vmpool.gauges import Reading

GAUGES: Final = web.AppKey("gauges", Gauges)


async def read(call: Call, query: bodies.MetricsQuery) -> web.Response:
    """Return what a sandbox used, at the times when somebody asked; now is one of them."""
    sandbox = await call.host.sandbox(call.request.match_info["id"], owner=call.caller.owner)
    metrics = map(_metric, await call.request.app[GAUGES].read(sandbox))
    start, end = query.start or 0, query.end
    return answer(
        [
            each
            for each in metrics
            if each.timestamp_unix >= start and (end is None or each.timestamp_unix <= end)
        ]
    )


def _metric(reading: Reading) -> bodies.Metric:
    return bodies.Metric(
        timestamp=views.rfc3339(reading.at_ns),
        timestamp_unix=reading.at_ns // 10**9,
        cpu_count=reading.cpus,
        cpu_used_pct=reading.cpu_percent,
        mem_used=reading.memory_used_bytes,
        mem_total=reading.memory_bytes,
        mem_cache=reading.memory_cached_bytes,
        disk_used=reading.disk_used_bytes,
        disk_total=reading.disk_bytes,
    )
