"""Views: sandboxes and snapshots as E2B's clients read them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from vmpool.api import views
from vmpool.api.e2b.control import bodies
from vmpool.api.e2b.control.networks import rules_of
from vmpool.egress import NetworkMode
from vmpool.errors import NotFoundError
from vmpool.lifecycle import AutoResume, OnExpiry, SandboxState

if TYPE_CHECKING:
    from vmpool.host import Host
    from vmpool.model import MachineSpec
    from vmpool.sandbox import Sandbox
    from vmpool.vault import Checkpoint

MIB: Final = 1 << 20

_ASLEEP: Final = frozenset({SandboxState.PAUSED, SandboxState.RESUMING})


async def made(host: Host, sandbox: Sandbox) -> bodies.SandboxAnswer:
    """Return a sandbox for whoever may do all with it, with its tokens.

    Raises:
        CapacityError, StoreError: As `Ports.standing_token`.
    """
    exposure = await host.ports.exposure(sandbox)
    traffic = None if exposure.public else await host.ports.standing_token(sandbox)
    return bodies.SandboxAnswer(
        template=sandbox.template,
        id=sandbox.id,
        envd_access_token=sandbox.access_token or None,
        traffic_access_token=traffic,
        domain=host.settings.api.domain or None,
        alias=sandbox.template,
    )


def listed(host: Host, sandbox: Sandbox) -> bodies.Listed:
    """Return a sandbox for a list."""
    spec = _spec(host, sandbox)
    return bodies.Listed(
        template=sandbox.template,
        id=sandbox.id,
        alias=sandbox.template,
        started_at=views.rfc3339(sandbox.created_ns),
        end_at=views.rfc3339(sandbox.expires_ns),
        cpu_count=0 if spec is None else spec.vcpus,
        memory_mb=0 if spec is None else spec.memory_bytes // MIB,
        disk_size_mb=0 if spec is None else (spec.disk_bytes or spec.memory_bytes) // MIB,
        state=state_of(sandbox),
        metadata=sandbox.metadata,
    )


async def detail(host: Host, sandbox: Sandbox) -> bodies.Detail:
    """Return a sandbox as it is.

    Raises:
        StoreError: The journal cannot be read.
    """
    brief, policy = listed(host, sandbox), sandbox.claim.network
    allow, deny = rules_of(policy)
    exposure = await host.ports.exposure(sandbox)
    return bodies.Detail(
        **{name: getattr(brief, name) for name in brief.__struct_fields__},
        envd_access_token=sandbox.access_token or None,
        allow_internet_access=policy.mode is not NetworkMode.NONE,
        domain=host.settings.api.domain or None,
        lifecycle=bodies.Lifecycle(
            auto_resume=sandbox.claim.auto_resume is AutoResume.ON_REQUEST,
            on_timeout="kill" if sandbox.claim.on_expiry is OnExpiry.KILL else "pause",
        ),
        pause_mode="filesystem" if sandbox.claim.on_expiry is OnExpiry.PAUSE_DISK else "full",
        network=bodies.NetworkShown(
            allow_out=allow, deny_out=deny, allow_public_traffic=exposure.public
        ),
    )


def state_of(sandbox: Sandbox) -> Literal["running", "paused"]:
    """Return the one of two states that a sandbox is in: whether its guest could answer."""
    return "paused" if sandbox.state in _ASLEEP else "running"


def snapshot(kept: Checkpoint) -> bodies.SnapshotAnswer:
    """Return what was kept."""
    return bodies.SnapshotAnswer(id=kept.id, names=[] if kept.name is None else [kept.name])


def _spec(host: Host, sandbox: Sandbox) -> MachineSpec | None:
    """Return what machine a sandbox has; `None` when its template is gone."""
    try:
        key = host.catalogue.resolve(sandbox.template, owner=sandbox.owner)
        return host.catalogue.status(key).spec
    except NotFoundError:
        return None
