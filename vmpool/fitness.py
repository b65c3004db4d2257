"""Fitness: whether a snapshot can run on a host, told before a hypervisor finds out.

It compares what a manifest says with what the host is; it reads no file and asks no hypervisor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmpool.errors import SnapshotError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from vmpool.model import Accelerator, Processor, Transport
    from vmpool.snapshot import Snapshot


def require_fit(
    snapshot: Snapshot,
    *,
    version: str,
    processors: Mapping[Accelerator, Processor],
    transports: Collection[Transport],
) -> None:
    """Refuse, before the hypervisor does, a host on which a snapshot cannot run.

    Args:
        version: The host's hypervisor, as in `Engine.version`.
        processors: What guests can get on the host, as from `Engine.processor`, by the
            accelerators that work there.
        transports: Those that the host has.

    Raises:
        SnapshotError: It does not fit; `snapshot_processor_unfit` for its processor, with the
            features that this host lacks, `snapshot_unfit` for the rest.
    """
    spec, name = snapshot.manifest.spec, snapshot.manifest.id
    if spec.qemu_version != version:
        raise SnapshotError(
            f"snapshot {name!r} was saved by QEMU {spec.qemu_version!r}, this host has {version!r}",
            code="snapshot_unfit",
            remedy="make the template again on this host; what was saved before runs where "
            f"QEMU is {spec.qemu_version}",
        )
    if spec.accelerator not in processors:
        raise SnapshotError(
            f"snapshot {name!r} needs the accelerator {spec.accelerator.value!r}, "
            "which does not work on this host",
            code="snapshot_unfit",
            remedy="make the template again on this host",
        )
    if spec.transport not in transports:
        raise SnapshotError(
            f"snapshot {name!r} reaches its agent over {spec.transport.value!r}, "
            "which this host lacks",
            code="snapshot_unfit",
            remedy="load vhost_vsock, or make the template again on this host",
        )
    _require_processor(snapshot, processors[spec.accelerator])


def _require_processor(snapshot: Snapshot, offered: Processor) -> None:
    saved, name = snapshot.manifest.processor, snapshot.manifest.id
    if saved.vendor != offered.vendor:
        what = f"was saved on a processor of {saved.vendor!r}, here they are {offered.vendor!r}"
    elif lacking := offered.lacks(saved):
        what = f"needs what processors lack here: {', '.join(lacking)}"
    else:
        return
    raise SnapshotError(
        f"snapshot {name!r} {what}",
        code="snapshot_processor_unfit",
        remedy="make the template again on this host; for hosts of one vendor that differ, "
        "set cpu_model to a model that all of them have",
    )
