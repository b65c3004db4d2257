"""The ground that the ring stands on: a kernel whose KVM and vhost-vsock do what they say."""

from __future__ import annotations

import asyncio

import pytest

from vmpool.engine.qemu import detection, probe
from vmpool.model import Accelerator, Transport
from vmpool.tools import QEMU

pytestmark = pytest.mark.kvm


async def test_guests_run_on_kvm() -> None:
    version = await probe.query_version(QEMU.name)
    isolated = await asyncio.to_thread(detection.detect, QEMU.name, version)
    found = await probe.probe_accelerator(QEMU.name, isolated)
    assert found.accelerator is Accelerator.KVM, found.reason


def test_guests_are_talked_to_over_vsock() -> None:
    assert probe.probe_transport() is Transport.VSOCK
