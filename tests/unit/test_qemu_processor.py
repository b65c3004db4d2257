"""What QEMU says of processors, under emulation, and what is concluded when a host has less."""

from __future__ import annotations

import os
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import tiny_guest, tiny_template
from tests.tiny_template import attachment
from vmpool import fitness
from vmpool.engine.qemu import QemuEngine, command, detection
from vmpool.errors import HostError, SnapshotError
from vmpool.model import MIB, Accelerator, MachineSpec, MachineType, Transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@pytest.fixture
def run() -> Iterator[Path]:
    """A short directory that other accounts may pass through, as QEMU runs as one."""
    directory = Path(f"/tmp/vmpool-{secrets.token_hex(4)}")
    directory.mkdir(mode=0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
async def engine() -> AsyncIterator[QemuEngine]:
    found = await QemuEngine.detect()
    yield found
    found.close()


@pytest.fixture
def spec(engine: QemuEngine, run: Path) -> MachineSpec:
    root = run / "root"
    root.write_bytes(bytes(4096))
    return MachineSpec(
        root=root,
        memory_bytes=32 * MIB,
        accelerator=Accelerator.TCG,
        transport=Transport.SERIAL,
        qemu_version=engine.version,
    )


def less_able(run: Path, *missing: str) -> QemuEngine:
    """Return an engine on a host whose emulation lacks some features."""
    qemu = shutil.which("qemu-system-x86_64")
    options = " ".join(f"-global max-x86_64-cpu.{name}=off" for name in missing)
    program = run / "qemu"
    program.write_text(f'#!/bin/sh\nexec {qemu} "$@" {options}\n')
    program.chmod(0o755)
    return QemuEngine(binary=str(program), version="", isolation=detection.detect(str(program), ""))


@pytest.mark.parametrize("machine_type", MachineType)
async def test_a_template_fits_its_own_host_and_is_refused_by_name_where_features_are_missing(
    engine: QemuEngine, spec: MachineSpec, run: Path, machine_type: MachineType
) -> None:
    spec = replace(spec, machine_type=machine_type)
    template = await tiny_template.make(engine, spec, tiny_guest.IDLE, run=run, snapshots=run)

    async def fits(host: QemuEngine) -> None:
        with attachment(run) as at:
            offered = await host.processor(spec, at)
        fitness.require_fit(
            template,
            version=spec.qemu_version,
            processors={Accelerator.TCG: offered},
            transports={Transport.SERIAL},
        )

    await fits(engine)
    with pytest.raises(SnapshotError, match=r": avx2, bmi2 \(make") as caught:
        await fits(less_able(run, "bmi2", "avx2"))
    assert caught.value.error_code == "snapshot_processor_unfit"


async def test_a_template_of_a_machine_that_is_made_otherwise_by_now_is_refused(
    engine: QemuEngine, spec: MachineSpec, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(spec, shape=engine.shape(spec))
    template = await tiny_template.make(engine, spec, tiny_guest.IDLE, run=run, snapshots=run)
    with attachment(run) as at:
        shell = await engine.prepare(template, at)
        await shell.kill()
    monkeypatch.setattr(command, "_CPU_WITHOUT_NESTING", "-vmx")
    with attachment(run) as at, pytest.raises(SnapshotError, match="makes otherwise") as caught:
        await engine.prepare(template, at)
    assert caught.value.error_code == "snapshot_unfit"


async def test_a_guest_has_what_its_command_line_gave_it_and_cannot_nest(
    engine: QemuEngine, spec: MachineSpec, run: Path
) -> None:
    with attachment(run) as at:
        offered = await engine.processor(spec, at)
    assert {"sse2", "avx2", "svm", "erms"} <= offered.features
    for model, without in (("max", {"svm", "erms", "fsrm"}), ("qemu64-v1", {"svm", "avx2"})):
        kernel = tiny_guest.kernel(run, tiny_guest.IDLE)
        with attachment(run) as at:
            machine = await engine.boot(replace(spec, cpu_model=model), kernel, at)
            try:
                found = await machine.processor()
            finally:
                await machine.kill()
        assert found.vendor == offered.vendor
        assert "sse2" in found.features
        assert not without & found.features
        assert offered.lacks(found) == ()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("no-such-cpu", r"does not know the CPU model 'no-such-cpu'"),
        ("host", r"'host' needs what 'tcg' lacks here: kvm"),
        ("EPYC-v4", r"'EPYC-v4' needs what 'tcg' lacks here: .*\btopoext\b"),
    ],
)
async def test_a_model_that_is_not_to_be_had_is_refused_by_name_before_anything_boots(
    engine: QemuEngine, spec: MachineSpec, run: Path, model: str, words: str
) -> None:
    with attachment(run) as at, pytest.raises(HostError, match=words) as caught:
        await engine.processor(replace(spec, cpu_model=model), at)
    assert caught.value.error_code == "cpu_model_unfit"
    assert caught.value.remedy


@pytest.mark.skipif(not os.access("/dev/kvm", os.R_OK | os.W_OK), reason="/dev/kvm does not open")
async def test_kvm_is_asked_for_what_it_gives(
    engine: QemuEngine, spec: MachineSpec, run: Path
) -> None:
    under_kvm = replace(spec, accelerator=Accelerator.KVM, cpu_model="host")
    with attachment(run) as at:
        found = await engine.processor(under_kvm, at)
    assert {"lm", "sse2", "kvmclock"} <= found.features
