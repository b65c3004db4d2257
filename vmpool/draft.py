"""Draft: a template before there is anything of it.

It decides what machine a request, or a row of the journal, means on this host and what its pool may
use. It makes nothing.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from vmpool.config import PoolSettings
from vmpool.depot import DERIVED
from vmpool.entry import Entry
from vmpool.errors import InvalidRequestError
from vmpool.model import MIB, Accelerator, MachineSpec, Nic
from vmpool.policy import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.config import Settings
    from vmpool.entry import Offer, TemplateRequest
    from vmpool.ground import Ground
    from vmpool.image import Image
    from vmpool.snapshot import Snapshot
    from vmpool.store import TemplateRow

DERIVED_READY = 1
"""Clones to keep ready of a template that was made of a checkpoint, where nobody says."""


def requested(ground: Ground, request: TemplateRequest, image: Image) -> Entry:
    """Return the template that a request means; what it leaves open, the image's recipe says.

    Raises:
        InvalidRequestError: The machine (`invalid_machine`) or its limits are not possible.
    """
    defaults = image.defaults
    memory_bytes = request.memory_bytes or defaults.memory_bytes
    if memory_bytes % MIB:
        raise InvalidRequestError(
            f"memory of {memory_bytes} bytes is no multiple of 1 MiB", code="invalid_machine"
        )
    disk_bytes = defaults.disk_bytes if request.disk_bytes is None else request.disk_bytes
    limits = request.limits or _limits(ground.settings, request.key, defaults.ready)
    return Entry(
        name=request.key,
        digest=image.digest,
        image_name=image.name,
        spec=_spec(
            ground,
            image.root,
            memory_bytes=memory_bytes,
            vcpus=request.vcpus or defaults.vcpus,
            disk_bytes=disk_bytes,
        ),
        limits=replace(limits, clone_bytes=memory_bytes),
        created_ns=time.time_ns(),
    )


def offered(ground: Ground, offer: Offer, found: Snapshot, image_name: str) -> Entry:
    """Return the template that a snapshot becomes which was made of a checkpoint."""
    limits = offer.limits or _limits(ground.settings, offer.key, DERIVED_READY)
    return Entry(
        name=offer.key,
        digest=found.manifest.image,
        image_name=image_name,
        spec=found.spec,
        limits=replace(limits, clone_bytes=found.spec.memory_bytes),
        created_ns=time.time_ns(),
        derived=offer.snapshot,
        env=offer.env,
    )


def recorded(ground: Ground, row: TemplateRow, image_name: str, *, root: Path) -> Entry:
    """Return the template that a row of the journal means to the hypervisor that is here now."""
    return Entry(
        name=row.name,
        digest=row.image_digest,
        image_name=image_name,
        spec=_spec(
            ground, root, memory_bytes=row.memory_bytes, vcpus=row.vcpus, disk_bytes=row.disk_bytes
        ),
        limits=Limits(**row.limits),
        created_ns=row.created_ns,
        derived=row.snapshot_id if row.snapshot_id.startswith(DERIVED) else None,
        env=row.env,
    )


def _limits(settings: Settings, name: str, ready: int) -> Limits:
    """Return the settings' limits for a template; where they say nothing, the recipe's."""
    pool = settings.pool_of(name)
    if pool == PoolSettings():
        return replace(pool.limits(clone_bytes=0), ready=ready)
    return pool.limits(clone_bytes=0)


def _spec(
    ground: Ground, root: Path, *, memory_bytes: int, vcpus: int, disk_bytes: int
) -> MachineSpec:
    spec = MachineSpec(
        root=root,
        memory_bytes=memory_bytes,
        accelerator=ground.accelerator,
        transport=ground.transport,
        vcpus=vcpus,
        disk_bytes=disk_bytes,
        cpu_model=ground.settings.cpu_model or _all_of(ground.accelerator),
        nic=Nic.VIRTIO,
        qemu_version=ground.engine.version,
    )
    return replace(spec, shape=ground.engine.shape(spec))


def _all_of(accelerator: Accelerator) -> str:
    """Return the CPU model that gives a guest all that the accelerator has."""
    match accelerator:
        case Accelerator.KVM:
            return "host"
        case Accelerator.TCG:
            return "max"
