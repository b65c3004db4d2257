"""Command: QEMU's command line for one machine, as a pure function of its spec.

Every file and socket reaches QEMU as an open descriptor with a number fixed here, so that the
command line holds no host path and the process needs no access to any. Boot and restore share one
device list: a state loads only into the devices that it was saved from.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from enum import IntEnum

from vmpool.model import (
    AGENT_PORT_NAME,
    GUEST_MAC,
    MIB,
    Accelerator,
    MachineSpec,
    MachineType,
    Nic,
    Transport,
)


class Slot(IntEnum):
    """Descriptor numbers in the QEMU process; each number also names the fdset that holds it."""

    QMP = 3
    AGENT = 4
    MEMORY = 5
    ROOT = 6
    KERNEL = 7
    INITRD = 8
    CONSOLE = 9
    DISK = 10
    OVERLAY = 11
    VHOST = 12
    KVM = 13
    # QEMU waits for an RCU grace period (5 to 10 ms) whenever its descriptor table grows; with one
    # high descriptor open from the start the table has its final size.
    CEILING = 255


NIC = "nic"
"""Id of a guest's network device."""

HUB = 0
"""The hub that it hangs on."""

HOST_MODELS = frozenset({"host", "max"})
"""CPU models that are all that a host has; every other is the same on every host."""

STATE_FDSET = 300
"""The fdset that a state's descriptor is added to over QMP; above all slots."""

DEVICES_FDSET = 301
"""The fdset of the descriptor that a running machine's devices are saved to."""

LAYERS_FDSET = 400
"""The first of the fdsets of a machine's disk layers; one for each."""

KVM_DEVICE_SINCE = (9, 0)
"""First version whose `-accel kvm` takes its device as an open descriptor."""

# What one clone may spend on translated code. QEMU takes a gigabyte by default and only what is
# used counts, but a guest that runs long enough would use it all.
_TRANSLATION_CACHE_MIB = 64

# TCG emulates the string instructions a byte or a word at a time: a guest that has no fast ones
# clears and copies its pages by plain moves, in a third of the time.
_CPU_WITHOUT_STRINGS = "-erms,-fsrm"
_KERNEL_WITHOUT_STRINGS = "clearcpuid=rep_good"

# TCG walks page tables in software: four levels cost less than five, and no guest here is so large.
_CPU_WITH_FOUR_LEVELS = "-la57"

# Each switch between processes would save and load these too; nothing uses them.
_CPU_WITHOUT_UNUSED_STATE = "-mpx,-pku"

_KERNEL_UNDER_TCG = (
    _KERNEL_WITHOUT_STRINGS,
    # They are against a processor that speculates. TCG's does not: here each only costs a detour,
    # and what the host's processor does is for the host's kernel and QEMU to mend.
    "mitigations=off",
    # What the host watches over, or nobody here looks at, and every fork, exec or wait pays for:
    # clearing what is handed out inside of the kernel, the pressure of stalls, groups of sessions,
    # audit, modules of security without rules, and a second clock to hold the first one against,
    # which is the host's own.
    "init_on_alloc=0",
    "psi=0",
    "noautogroup",
    "audit=0",
    "lsm=landlock,yama",
    "tsc=reliable",
)

# The kernel counts ticks for 40 ms to see that the timer is wired, and panics without any: it is
# wired, but a busy host may not give QEMU that long a turn to send one. Only a boot reads it: what
# was saved of a guest that was not told is no other guest.
_KERNEL_TO_BOOT_UNDER_TCG = "no_timer_check"

# A guest that cannot start guests cannot attack what emulates their instructions.
_CPU_WITHOUT_NESTING = "-vmx,-svm"

_SHAPING = frozenset({"-accel", "-cpu", "-device", "-global", "-m", "-machine", "-serial", "-smp"})

_CONSOLE_BYTES = 64 << 10

_BOARDS = {
    # Each controller left out saves start time, memory and attack surface.
    MachineType.Q35: "q35,sata=off,usb=off,smbus=off,hpet=off,vmport=off,i8042=off",
    # Under TCG the guest needs the old timer and interrupt controller to come up.
    MachineType.MICROVM: (
        "microvm,acpi=on,pit=on,pic=on,rtc=on,isa-serial=on,auto-kernel-cmdline=off"
    ),
}
_BOARD_OPTIONS = "memory-backend=ram,mem-merge=off,dump-guest-core=off"

# Only the local APIC stays in the kernel: its PIC, IOAPIC and PIT are attack surface that our
# guests, with message-signalled interrupts, have no use for, and creating them has KVM wait.
INTERRUPTS_UNDER_KVM = "kernel-irqchip=split"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """What one command line has beyond its spec.

    Attributes:
        name: What `ps` shows to tell one QEMU from the next.
        cid: The vsock context id; `None` on virtio-serial.
    """

    name: str
    cid: int | None = None


def boot(spec: MachineSpec, instance: Instance, command_line: str) -> list[str]:
    """Return QEMU's arguments to boot a machine whose memory its clones will share."""
    return [
        *_machine(spec, instance),
        *("-object", _memory(spec, "share=on")),
        *_kernel(spec, command_line),
        *("-add-fd", _fdset(Slot.CONSOLE)),
        # Appended to, for it is a pipe, and QEMU would cut a file to nothing.
        *("-chardev", f"file,id=console,path=/dev/fdset/{Slot.CONSOLE:d},append=on"),
        *_block("root", Slot.ROOT, "read-only=on"),
        *(_block("scratch", Slot.DISK, "cache.no-flush=on") if spec.disk_bytes else []),
        *_devices(spec, instance),
    ]


def restore(spec: MachineSpec, instance: Instance) -> list[str]:
    """Return QEMU's arguments to wait, stopped, for a state of a machine booted as `spec`."""
    return [
        *_machine(spec, instance),
        *("-incoming", "defer"),
        "-S",
        *_clone(spec, instance),
    ]


def reboot(spec: MachineSpec, instance: Instance, command_line: str) -> list[str]:
    """Return QEMU's arguments to boot, once it may run, where `restore` waits for a state.

    The machine is the one that states of the template are loaded into, its memory mapped alike: so
    what is saved of it later is a difference from the template, like that of any clone.
    """
    return [
        *_machine(spec, instance),
        "-S",
        *_clone(spec, instance),
        *_kernel(spec, command_line),
    ]


def shape(spec: MachineSpec) -> str:
    """Return a digest of all options that a state depends on: 16 hex digits.

    Another `-cpu` or `-device` under the same spec is another machine: a state that was saved from
    the one may load into the other, and the guest fail later. What its kernel was told is another
    guest.
    """
    argv = restore(spec, Instance(name="", cid=0))
    parts = [pair for pair in itertools.pairwise(argv) if pair[0] in _SHAPING]
    parts.append(("-append", kernel_line(spec, "")))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def bare(spec: MachineSpec, instance: Instance) -> list[str]:
    """Return QEMU's arguments to answer questions about `spec`'s accelerator without a machine."""
    return [
        *_process(spec, instance),
        *("-accel", _accelerator(spec)),
        *("-machine", "none"),
        "-S",
    ]


def _process(spec: MachineSpec, instance: Instance) -> list[str]:
    return [
        *("-name", instance.name.replace(",", ",,")),
        *("-nodefaults", "-no-user-config"),
        *("-display", "none"),
        *("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"),
        *("-chardev", f"socket,id=qmp,fd={Slot.QMP:d},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *(_opened_kvm() if takes_kvm_descriptor(spec) else []),
    ]


def _machine(spec: MachineSpec, instance: Instance) -> list[str]:
    return [
        *_process(spec, instance),
        *("-accel", _accelerator(spec)),
        *("-machine", f"{_BOARDS[spec.machine_type]},{_BOARD_OPTIONS}"),
        *("-cpu", _cpu(spec)),
        *("-smp", f"cpus={spec.vcpus},maxcpus={spec.vcpus}"),
        *("-m", f"{spec.memory_bytes // MIB}M"),
        *("-rtc", "base=utc,clock=host"),
        # A guest that powers off, reboots or panics ends the process: its death is the one signal.
        "-no-reboot",
        *("-action", "panic=exit-failure"),
    ]


def _clone(spec: MachineSpec, instance: Instance) -> list[str]:
    """Return the memory of a template, mapped privately, its disks and its devices."""
    return [
        # Without a writable descriptor a balloon's discard cannot punch holes in the golden file.
        *("-object", _memory(spec, "share=off,readonly=on,rom=off")),
        *("-chardev", f"ringbuf,id=console,size={_CONSOLE_BYTES}"),
        *_block("root", Slot.ROOT, "read-only=on"),
        *(_overlay() if spec.disk_bytes else []),
        *_devices(spec, instance),
    ]


def _kernel(spec: MachineSpec, command_line: str) -> list[str]:
    return [
        *("-kernel", _path(Slot.KERNEL)),
        *("-initrd", _path(Slot.INITRD)),
        *("-append", _boot_line(spec, command_line)),
    ]


def _accelerator(spec: MachineSpec) -> str:
    match spec.accelerator:
        case Accelerator.TCG:
            return f"tcg,tb-size={_TRANSLATION_CACHE_MIB}"
        case Accelerator.KVM if takes_kvm_descriptor(spec):
            return f"kvm,{INTERRUPTS_UNDER_KVM},device=/dev/fdset/{Slot.KVM:d}"
        case Accelerator.KVM:
            return f"kvm,{INTERRUPTS_UNDER_KVM}"


def _cpu(spec: MachineSpec) -> str:
    options = [spec.cpu_model, _CPU_WITHOUT_NESTING]
    if spec.accelerator is Accelerator.TCG:
        options += [_CPU_WITHOUT_STRINGS, _CPU_WITH_FOUR_LEVELS, _CPU_WITHOUT_UNUSED_STATE]
    if spec.cpu_model.partition(",")[0] not in HOST_MODELS:
        # Whole or not at all: a clone's features must not depend on which host made its template.
        options.append("enforce")
    return ",".join(options)


def kernel_line(spec: MachineSpec, command_line: str) -> str:
    """Return what a guest's kernel is told: an image's words, and the accelerator's."""
    if spec.accelerator is Accelerator.TCG:
        return " ".join((command_line, *_KERNEL_UNDER_TCG))
    return command_line


def _boot_line(spec: MachineSpec, command_line: str) -> str:
    if spec.accelerator is Accelerator.TCG:
        command_line = f"{command_line} {_KERNEL_TO_BOOT_UNDER_TCG}"
    return kernel_line(spec, command_line)


def takes_kvm_descriptor(spec: MachineSpec) -> bool:
    """Whether QEMU is handed `/dev/kvm` open; it opens the path itself where it cannot be."""
    if spec.accelerator is not Accelerator.KVM:
        return False
    return parse_version(spec.qemu_version) >= KVM_DEVICE_SINCE


def parse_version(version: str) -> tuple[int, ...]:
    """Return `"10.0.2"` as `(10, 0, 2)`; parts that are no number end it."""
    parts: list[int] = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        parts.append(int(part))
    return tuple(parts)


def _opened_kvm() -> list[str]:
    return ["-add-fd", _fdset(Slot.KVM)]


def _memory(spec: MachineSpec, sharing: str) -> str:
    return (
        f"memory-backend-file,id=ram,size={spec.memory_bytes},"
        f"mem-path={_path(Slot.MEMORY)},{sharing},merge=off,dump=off"
    )


def _block(node: str, slot: Slot, options: str) -> list[str]:
    file = f"driver=file,node-name={node}-file,filename=/dev/fdset/{slot:d},{options}"
    return [
        *("-add-fd", _fdset(slot)),
        *("-blockdev", file),
        *("-blockdev", f"driver=raw,node-name={node},file={node}-file,{options}"),
    ]


def _overlay() -> list[str]:
    slot, options = Slot.OVERLAY, "cache.no-flush=on"
    file = f"driver=file,node-name=scratch-file,filename=/dev/fdset/{slot:d},{options}"
    qcow2 = f"driver=qcow2,node-name=scratch,file=scratch-file,backing=golden,{options}"
    return [
        *_block("golden", Slot.DISK, "read-only=on"),
        *("-add-fd", _fdset(slot)),
        *("-blockdev", file),
        *("-blockdev", qcow2),
    ]


def _devices(spec: MachineSpec, instance: Instance) -> list[str]:
    pci = spec.machine_type is MachineType.Q35
    bus = "pci" if pci else "device"

    def at(address: int) -> str:
        # Fixed addresses: a device added later moves none of these.
        return f",disable-legacy=on,addr={address:#x}" if pci else ""

    devices = [
        *("-serial", "chardev:console"),
        *("-device", f"virtio-blk-{bus},drive=root,num-queues=1{at(2)}"),
    ]
    if spec.disk_bytes:
        devices += ["-device", f"virtio-blk-{bus},drive=scratch,num-queues=1{at(3)}"]
    match spec.transport:
        case Transport.SERIAL:
            devices += [
                *("-chardev", f"socket,id=agent,fd={Slot.AGENT:d},server=on,wait=off"),
                *("-device", f"virtio-serial-{bus},max_ports=2{at(4)}"),
                *("-device", f"virtserialport,chardev=agent,name={AGENT_PORT_NAME}"),
            ]
        case Transport.VSOCK:
            vsock = f"vhost-vsock-{bus},guest-cid={instance.cid},vhostfd={Slot.VHOST:d}"
            devices += ["-device", vsock + (f",addr={4:#x}" if pci else "")]
    if spec.nic is Nic.VIRTIO:
        devices += _nic(bus, at(5))
    if pci:
        # microvm has no generation id, and nothing tells its guest of a panic device.
        devices += ["-device", "vmgenid,guid=auto", "-device", "pvpanic"]
    else:
        devices += ["-global", "virtio-mmio.force-legacy=false"]
    return devices


def _nic(bus: str, address: str) -> list[str]:
    rom = ",romfile=" if address else ""  # only devices on PCI have one
    return [
        *("-netdev", f"hubport,id=hub,hubid={HUB}"),
        # A hub takes packets only when somebody is there to have them, and what it does not take
        # stops the device for good: this port has whatever comes go nowhere.
        *("-netdev", f"hubport,id=nowhere,hubid={HUB}"),
        *("-device", f"virtio-net-{bus},id={NIC},netdev=hub,mac={GUEST_MAC}{rom}{address}"),
    ]


def _path(slot: Slot) -> str:
    return f"/proc/self/fd/{slot:d}"


def _fdset(slot: Slot) -> str:
    return f"fd={slot:d},set={slot:d}"
