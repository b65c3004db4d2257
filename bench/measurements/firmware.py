"""Firmware: a restore under KVM beside one under TCG, of a machine that runs no operating system.

Some `/dev/kvm` create machines and map memory, and run firmware but no 64-bit kernel. On them this
is the honest figure of what a restore costs under KVM: all that is the hypervisor's work, and
nothing of a guest's. The template is a machine whose firmware has started a kernel of a few bytes.
What restores it is the engine itself. A clone on q35 notices that it was restored, writes to its
memory and powers off, which shows that it runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from tests import tiny_guest, tiny_template
from vmpool.clone import claim_directory
from vmpool.engine import qemu
from vmpool.errors import GuestError, VmpoolError
from vmpool.model import MIB, Accelerator, MachineSpec, MachineType, Transport

if TYPE_CHECKING:
    from pathlib import Path

    from bench.subject import Subject
    from vmpool.snapshot import Snapshot

MEMORY_BYTES = 256 * MIB

ANSWER_TIMEOUT = 10.0
"""Seconds for a clone to power off."""

CPU_MODELS = {
    # Firmware does not ask for it, and some back ends of KVM say that they have it and refuse it.
    Accelerator.KVM: "host,arch-capabilities=off",
    Accelerator.TCG: "max",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One machine that is restored."""

    accelerator: Accelerator
    machine_type: MachineType

    @property
    def name(self) -> str:
        """As the series of the case begin."""
        return f"{self.machine_type}, {self.accelerator}"


CASES = tuple(
    Case(accelerator=accelerator, machine_type=machine_type)
    for machine_type in MachineType
    for accelerator in Accelerator
)


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Compare on the subject's stand; its image is of no account."""
    engine = subject.stand.engine
    assert isinstance(engine, qemu.QemuEngine)  # the stand's is
    await compare(engine, subject.stand.clones, pace, findings)


async def compare(engine: qemu.QemuEngine, clones: Path, pace: Pace, findings: Findings) -> None:
    """Make the templates, then restore one clone of each in every round, in an order that rotates.

    Args:
        clones: Directory that machines' directories are made in.
    """
    async with contextlib.AsyncExitStack() as undo:
        directory = claim_directory(clones)
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        made: list[tuple[Case, Snapshot]] = []
        for case in CASES:
            try:
                made.append((case, await _template(engine, case, directory, clones)))
            except VmpoolError as err:
                if case.accelerator is not Accelerator.KVM:
                    raise
                findings.remark(f"{case.name}: skipped: {err.message}")
        for case, template in made:
            await _restore(engine, case, template, clones)  # fills the page cache
        for turn in pace.turns():
            start = turn % len(made)
            for case, template in made[start:] + made[:start]:
                try:
                    phases = await _restore(engine, case, template, clones)
                except VmpoolError as err:
                    findings.fail(err)
                    continue
                for name, milliseconds in phases.items():
                    findings.series(f"{case.name}: {name}").add(milliseconds)


async def _template(engine: qemu.QemuEngine, case: Case, directory: Path, clones: Path) -> Snapshot:
    root = directory / "root"
    root.write_bytes(bytes(4096))
    spec = MachineSpec(
        root=root,
        memory_bytes=MEMORY_BYTES,
        accelerator=case.accelerator,
        transport=Transport.SERIAL,
        machine_type=case.machine_type,
        cpu_model=CPU_MODELS[case.accelerator],
        qemu_version=engine.version,
    )
    pci = case.machine_type is MachineType.Q35
    code = tiny_guest.WITNESS if pci else tiny_guest.IDLE
    try:
        return await tiny_template.make(engine, spec, code, run=clones, snapshots=directory)
    except TimeoutError as err:
        raise GuestError("the firmware does not come up", code="guest_unreachable") from err


async def _restore(
    engine: qemu.QemuEngine, case: Case, template: Snapshot, clones: Path
) -> dict[str, float]:
    """Restore and end one clone; return its phases in milliseconds."""
    async with contextlib.AsyncExitStack() as undo:
        at = undo.enter_context(tiny_template.attachment(clones))
        shell = await engine.prepare(template, at)
        undo.push_async_callback(shell.kill)
        prepared = time.perf_counter_ns()
        machine = await shell.load(template)
        loaded = time.perf_counter_ns()
        await machine.resume()
        resumed = time.perf_counter_ns()
        spawn, monitor = shell.timings.spawn_ns, shell.timings.monitor_ns
        phases = {
            "spawn": spawn,
            "control socket answers": monitor,
            "load": loaded - prepared,
            "resume": resumed - loaded,
            "to resumed": spawn + monitor + resumed - prepared,
        }
        if case.machine_type is MachineType.Q35:
            await _powered_off(machine)
            phases["powered off by its guest"] = time.perf_counter_ns() - resumed
    return {name: nanoseconds / 1e6 for name, nanoseconds in phases.items()}


async def _powered_off(machine: qemu.QemuMachine) -> None:
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            ending = await machine.obituary()
    except TimeoutError as err:
        raise GuestError("the restored machine does not run", code="guest_unreachable") from err
    if ending.error_code != "guest_powered_off":
        raise ending


MEASUREMENT = Measurement(
    name="firmware",
    summary="a restore under this machine's own KVM beside one under TCG, without a guest system",
    rounds=Rounds(quick=10, full=100),
    weight=2,
    measure=measure,
    chapter=Chapter.START,
)
