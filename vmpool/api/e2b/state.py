"""State: whether a sandbox is there, what it uses, and what its programs find, over plain HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web
from msgspec import Struct

from vmpool.api import codec
from vmpool.api.e2b import environment
from vmpool.api.e2b.control.metrics import GAUGES
from vmpool.api.e2b.visit import Endpoint, Opening, Shape

if TYPE_CHECKING:
    from vmpool.api.e2b.visit import Table, Visit


class Metrics(Struct, frozen=True, kw_only=True):
    """What the guest uses now; `ts` is Unix seconds, sizes are bytes."""

    ts: int
    cpu_count: int
    cpu_used_pct: float
    mem_total: int
    mem_used: int
    mem_cache: int
    disk_used: int
    disk_total: int


async def health(visit: Visit) -> web.Response:
    """Say that the sandbox is there."""
    del visit
    return web.Response(status=204)


async def metrics(visit: Visit) -> web.Response:
    """Tell what the guest uses now."""
    reading = (await visit.request.app[GAUGES].read(visit.sandbox))[-1]
    told = Metrics(
        ts=reading.at_ns // 10**9,
        cpu_count=reading.cpus,
        cpu_used_pct=reading.cpu_percent,
        mem_total=reading.memory_bytes,
        mem_used=reading.memory_used_bytes,
        mem_cache=reading.memory_cached_bytes,
        disk_used=reading.disk_used_bytes,
        disk_total=reading.disk_bytes,
    )
    return web.Response(body=codec.encode(told), content_type="application/json")


async def variables(visit: Visit) -> web.Response:
    """Tell the environment that all programs find; what is secret in it, only they are told."""
    told = environment.told_by(visit.sandbox) | visit.sandbox.claim.env
    return web.Response(body=codec.encode_plain(told), content_type="application/json")


ENDPOINTS: Final[Table] = {
    ("GET", "/health"): Endpoint(opening=Opening.NOTHING, shape=Shape.CODE, run=health),
    ("GET", "/metrics"): Endpoint(opening=Opening.TOKEN, shape=Shape.CODE, run=metrics),
    ("GET", "/envs"): Endpoint(opening=Opening.TOKEN, shape=Shape.CODE, run=variables),
}
