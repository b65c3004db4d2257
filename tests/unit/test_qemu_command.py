"""QEMU's command lines, whole, as golden files: `UPDATE_GOLDEN=1` writes them anew."""

from __future__ import annotations

import itertools
import os
from dataclasses import replace
from pathlib import Path

import pytest

from vmpool.engine.qemu import command
from vmpool.engine.qemu.command import Instance, Slot
from vmpool.model import GIB, MIB, Accelerator, MachineSpec, MachineType, Nic, Transport

GOLDEN = Path(__file__).parents[1] / "golden" / "qemu"

SHAPES = list(itertools.product(MachineType, Accelerator, Transport, (0, 10 * GIB)))


def spec_of(
    machine_type: MachineType, accelerator: Accelerator, transport: Transport, disk_bytes: int
) -> MachineSpec:
    return MachineSpec(
        root=Path("/images/root.erofs"),
        memory_bytes=256 * MIB,
        accelerator=accelerator,
        transport=transport,
        machine_type=machine_type,
        cpu_model="host" if accelerator is Accelerator.KVM else "max",
        disk_bytes=disk_bytes,
        qemu_version="10.0.2",
    )


def instance_of(transport: Transport) -> Instance:
    return Instance(name="a1b2c3", cid=70000 if transport is Transport.VSOCK else None)


def as_text(argv: list[str]) -> str:
    """One option and its value on a line."""
    text = ""
    for part in argv:
        text += f"\n{part}" if part.startswith("-") else f" {part}"
    return text.lstrip() + "\n"


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
@pytest.mark.parametrize("act", ["boot", "restore"])
def test_command_lines_are_as_recorded(
    act: str, shape: tuple[MachineType, Accelerator, Transport, int]
) -> None:
    spec, instance = spec_of(*shape), instance_of(shape[2])
    if act == "boot":
        argv = command.boot(spec, instance, "console=ttyS0 quiet")
    else:
        argv = command.restore(spec, instance)
    machine_type, accelerator, transport, disk_bytes = shape
    disk = "disk" if disk_bytes else "diskless"
    path = GOLDEN / f"{act}-{machine_type}-{accelerator}-{transport}-{disk}.args"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(as_text(argv))
    assert as_text(argv) == path.read_text()


@pytest.mark.parametrize("machine_type", MachineType)
def test_a_network_device_hangs_on_a_hub_that_nobody_else_is_on(machine_type: MachineType) -> None:
    spec = spec_of(machine_type, Accelerator.TCG, Transport.SERIAL, 0)
    without = command.restore(spec, instance_of(Transport.SERIAL))
    argv = command.restore(replace(spec, nic=Nic.VIRTIO), instance_of(Transport.SERIAL))
    added = [part for part in argv if part not in without]
    text = "\n".join(part for part in added if not part.startswith("-")) + "\n"
    path = GOLDEN.parent / "qemu-nic" / f"{machine_type}.args"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_what_is_booted_on_a_disk_is_what_waits_for_states_but_for_a_kernel(
    shape: tuple[MachineType, Accelerator, Transport, int],
) -> None:
    spec, instance = spec_of(*shape), instance_of(shape[2])
    booted, waiting = command.boot(spec, instance, "quiet"), command.restore(spec, instance)
    kernel = booted[booted.index("-kernel") : booted.index("-append") + 2]
    at = waiting.index("-incoming")
    assert command.reboot(spec, instance, "quiet") == waiting[:at] + waiting[at + 2 :] + kernel


def test_a_machine_with_a_network_device_has_another_shape() -> None:
    spec = spec_of(MachineType.Q35, Accelerator.TCG, Transport.SERIAL, 0)
    assert command.shape(spec) != command.shape(replace(spec, nic=Nic.VIRTIO))


def test_every_golden_file_has_its_shape() -> None:
    assert len(list(GOLDEN.iterdir())) == 2 * len(SHAPES)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_a_clone_has_the_devices_that_its_template_was_saved_with(
    shape: tuple[MachineType, Accelerator, Transport, int],
) -> None:
    spec, instance = spec_of(*shape), instance_of(shape[2])

    def devices(argv: list[str]) -> list[str]:
        return [
            value
            for option, value in itertools.pairwise(argv)
            if option in {"-device", "-machine", "-cpu", "-smp", "-m", "-serial", "-global"}
        ]

    assert devices(command.boot(spec, instance, "x")) == devices(command.restore(spec, instance))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
def test_a_clone_maps_memory_privately_and_names_no_host_path(
    shape: tuple[MachineType, Accelerator, Transport, int],
) -> None:
    argv = command.restore(spec_of(*shape), instance_of(shape[2]))
    line = " ".join(argv)
    assert "share=off,readonly=on,rom=off" in line
    assert "/images" not in line
    assert not {"-kernel", "-initrd", "-append"} & set(argv)
    assert "-sandbox on," in line
    assert "mem-merge=off" in line


def test_a_qemu_too_old_for_a_kvm_descriptor_opens_the_path() -> None:
    new = spec_of(MachineType.Q35, Accelerator.KVM, Transport.SERIAL, 0)
    old = MachineSpec(
        root=new.root,
        memory_bytes=new.memory_bytes,
        accelerator=Accelerator.KVM,
        transport=Transport.SERIAL,
        qemu_version="8.2.2",
    )
    descriptor = f"kvm,kernel-irqchip=split,device=/dev/fdset/{Slot.KVM:d}"
    assert descriptor in command.restore(new, Instance(name="x"))
    assert "kvm,kernel-irqchip=split" in command.restore(old, Instance(name="x"))


@pytest.mark.parametrize(
    ("version", "parts"), [("10.0.2", (10, 0, 2)), ("8.2", (8, 2)), ("9.1.rc1", (9, 1)), ("", ())]
)
def test_versions_are_read_as_numbers(version: str, parts: tuple[int, ...]) -> None:
    assert command.parse_version(version) == parts


@pytest.mark.parametrize(
    "name",
    ["_CPU_WITHOUT_NESTING", "INTERRUPTS_UNDER_KVM", "_BOARD_OPTIONS", "AGENT_PORT_NAME"],
)
def test_a_machine_that_is_made_otherwise_has_another_shape(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    spec = spec_of(MachineType.Q35, Accelerator.KVM, Transport.SERIAL, 0)
    before = command.shape(spec)
    monkeypatch.setattr(command, name, f"{getattr(command, name)}-otherwise")
    assert command.shape(spec) != before


def test_a_kernel_that_is_told_otherwise_has_another_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(MachineType.Q35, Accelerator.TCG, Transport.SERIAL, 0)
    before = command.shape(spec)
    monkeypatch.setattr(command, "_KERNEL_UNDER_TCG", ())
    assert command.shape(spec) != before


def test_only_an_emulated_kernel_is_told_to_leave_mitigations_off() -> None:
    for accelerator in Accelerator:
        spec = spec_of(MachineType.Q35, accelerator, Transport.SERIAL, 0)
        line = command.kernel_line(spec, "quiet")
        assert (line == "quiet") == (accelerator is Accelerator.KVM)
        assert ("mitigations=off" in line.split()) == (accelerator is Accelerator.TCG)


def test_what_a_state_does_not_depend_on_is_no_part_of_the_shape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = spec_of(MachineType.Q35, Accelerator.TCG, Transport.VSOCK, GIB)
    before = command.shape(spec)
    monkeypatch.setattr(command, "_CONSOLE_BYTES", 1)
    monkeypatch.setattr(command, "_KERNEL_TO_BOOT_UNDER_TCG", "")
    moved = replace(spec, root=Path("/elsewhere"), shape=before)
    assert command.shape(moved) == before
    assert len({command.shape(spec_of(*shape)) for shape in SHAPES}) == len(SHAPES)


@pytest.mark.parametrize(
    ("model", "cpu"),
    [
        ("host", "host,-vmx,-svm"),
        ("host,arch-capabilities=off", "host,arch-capabilities=off,-vmx,-svm"),
        ("max", "max,-vmx,-svm"),
        ("EPYC-v4", "EPYC-v4,-vmx,-svm,enforce"),
    ],
)
def test_a_named_cpu_model_is_had_whole_or_not_at_all(model: str, cpu: str) -> None:
    spec = replace(spec_of(MachineType.Q35, Accelerator.KVM, Transport.SERIAL, 0), cpu_model=model)
    argv = command.restore(spec, Instance(name="x"))
    assert argv[argv.index("-cpu") + 1] == cpu


def test_a_comma_in_a_name_stays_in_the_name() -> None:
    spec = spec_of(MachineType.Q35, Accelerator.TCG, Transport.SERIAL, 0)
    argv = command.restore(spec, Instance(name="a,debug-threads=on"))
    assert argv[argv.index("-name") + 1] == "a,,debug-threads=on"
