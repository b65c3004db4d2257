"""`-cpu host`: what its guests have, and where their snapshots are refused."""

from __future__ import annotations

import asyncio
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import tiny_guest, tiny_template
from tests.tiny_template import attachment
from vmpool import fitness
from vmpool.engine.qemu import QemuEngine, detection
from vmpool.errors import SnapshotError
from vmpool.model import MIB, Accelerator, MachineSpec, Transport

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kvm


@pytest.fixture
def run() -> Iterator[Path]:
    """A short directory that other accounts may pass through, as QEMU runs as one."""
    directory = Path(f"/tmp/vmpool-{secrets.token_hex(4)}")
    directory.mkdir(mode=0o711)
    yield directory
    shutil.rmtree(directory)


async def test_a_template_of_this_host_runs_on_it_and_is_refused_on_a_lesser_one_by_name(
    run: Path,
) -> None:
    engine = await QemuEngine.detect()
    root = run / "root"
    root.write_bytes(bytes(4096))
    spec = MachineSpec(
        root=root,
        memory_bytes=32 * MIB,
        accelerator=Accelerator.KVM,
        transport=Transport.VSOCK,
        cpu_model="host",
        qemu_version=engine.version,
    )
    template = await tiny_template.make(engine, spec, tiny_guest.WITNESS, run=run, snapshots=run)

    async def fits(host: QemuEngine) -> None:
        with attachment(run) as at:
            offered = await host.processor(spec, at)
        fitness.require_fit(
            template,
            version=engine.version,
            processors={Accelerator.KVM: offered},
            transports={Transport.VSOCK},
        )

    await fits(engine)
    assert {"lm", "sse2"} <= template.manifest.processor.features
    assert not {"vmx", "svm"} & template.manifest.processor.features
    with attachment(run) as at:
        clone = await (await engine.prepare(template, at)).load(template)
        try:
            await clone.resume()
            async with asyncio.timeout(60):
                assert (await clone.obituary()).error_code == "guest_powered_off"
        finally:
            await clone.kill()

    lesser = run / "qemu"
    qemu = shutil.which("qemu-system-x86_64")
    lesser.write_text(f'#!/bin/sh\nexec {qemu} "$@" -global host-x86_64-cpu.sse4.2=off\n')
    lesser.chmod(0o755)
    isolated = await asyncio.to_thread(detection.detect, str(lesser), engine.version)
    with pytest.raises(SnapshotError, match=r": sse4\.2 \(make") as caught:
        await fits(QemuEngine(binary=str(lesser), version=engine.version, isolation=isolated))
    assert caught.value.error_code == "snapshot_processor_unfit"
