"""Capability: what the machine lacks for the kvm ring, found out by doing it."""

from __future__ import annotations

import asyncio
import os

from vmpool.engine.qemu import detection, vsock
from vmpool.engine.qemu.probe import probe_accelerator, query_version
from vmpool.errors import HostError
from vmpool.model import Accelerator
from vmpool.tools import QEMU


async def query_lacking() -> tuple[str, ...]:
    """Return what is missing, one sentence each; empty where the ring can run."""
    return tuple(sorted({*await _lacking_kvm(), *_lacking_vsock()}))


async def _lacking_kvm() -> tuple[str, ...]:
    try:
        version = await query_version(QEMU.name)
        isolated = await asyncio.to_thread(detection.detect, QEMU.name, version)
        found = await probe_accelerator(QEMU.name, isolated)
    except HostError as err:
        return (f"no working /dev/kvm: {err}",)
    if found.accelerator is Accelerator.KVM:
        return ()
    return (f"no working /dev/kvm: {found.reason}",)


def _lacking_vsock() -> tuple[str, ...]:
    try:
        claim = vsock.claim()
    except HostError as err:
        return (f"no working /dev/vhost-vsock: {err.message}",)
    os.close(claim.descriptor)
    return ()
