"""Operations: what E2B's clients ask of the control plane about sandboxes and snapshots.

Paths of two versions stand beside each other, since older clients ask for the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vmpool.api.e2b.control import bodies, metrics, networks, sandboxes, snapshots
from vmpool.api.e2b.operation import Operation, reads, takes
from vmpool.api.idempotency import takes_once

if TYPE_CHECKING:
    from aiohttp import web

    from vmpool.api.route import Call


async def _refuse_volumes(_: Call) -> web.StreamResponse:
    raise networks.unsupported("volumes")


async def _refuse_secrets(_: Call) -> web.StreamResponse:
    raise networks.unsupported("secrets", remedy="pass envs to Sandbox.create")


_create = takes_once(bodies.NewSandbox, sandboxes.create)["run"]
_connect = takes(bodies.Connect, sandboxes.connect)

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(method="POST", path="/sandboxes", run=_create),
    Operation(method="POST", path="/v2/sandboxes", run=_create),
    Operation(
        method="GET",
        path="/sandboxes",
        run=reads(bodies.SandboxesQuery, sandboxes.list_running),
    ),
    Operation(
        method="GET",
        path="/v2/sandboxes",
        run=reads(bodies.SandboxesQuery, sandboxes.list_own),
    ),
    Operation(method="GET", path="/sandboxes/{id}", run=reads(bodies.Nothing, sandboxes.look)),
    Operation(method="DELETE", path="/sandboxes/{id}", run=reads(bodies.Nothing, sandboxes.kill)),
    Operation(method="POST", path="/sandboxes/{id}/connect", run=_connect),
    Operation(method="POST", path="/v2/sandboxes/{id}/connect", run=_connect),
    Operation(method="POST", path="/sandboxes/{id}/resume", run=_connect),
    Operation(
        method="POST",
        path="/sandboxes/{id}/timeout",
        run=takes(bodies.Timeout, sandboxes.set_timeout),
    ),
    Operation(
        method="POST",
        path="/sandboxes/{id}/refreshes",
        run=takes(bodies.Refresh, sandboxes.refresh),
    ),
    Operation(
        method="POST", path="/sandboxes/{id}/pause", run=takes(bodies.Pause, sandboxes.pause)
    ),
    Operation(method="POST", path="/sandboxes/{id}/fork", run=takes(bodies.Fork, sandboxes.fork)),
    Operation(
        method="GET",
        path="/sandboxes/{id}/metrics",
        run=reads(bodies.MetricsQuery, metrics.read),
    ),
    Operation(
        method="PUT",
        path="/sandboxes/{id}/network",
        run=takes(bodies.NetworkUpdate, sandboxes.replace_network),
    ),
    Operation(
        method="POST",
        path="/sandboxes/{id}/snapshots",
        run=takes(bodies.NewSnapshot, snapshots.create),
    ),
    Operation(
        method="GET", path="/snapshots", run=reads(bodies.SnapshotsQuery, snapshots.list_own)
    ),
    Operation(method="*", path="/volumes{rest:.*}", run=_refuse_volumes),
    Operation(method="*", path="/secrets{rest:.*}", run=_refuse_secrets),
)
