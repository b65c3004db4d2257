"""Model: the values that cross the lines between modules.

Frozen, comparable, without behaviour beyond checking themselves. It decides nothing and knows no
library: what a machine, a clone's identity or a command is, not how any of them comes about.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

MIB = 1 << 20
GIB = 1 << 30

AGENT_PORT_NAME = "vmpool.agent"
"""Name of the virtio-serial port that the agent opens in the guest."""

AGENT_VSOCK_PORT = 1024
"""Port on which the agent listens over AF_VSOCK."""

DEFAULT_USER = "user"
"""The guest account that code runs as when the caller names none; its home is `/home/user`."""

GUEST_MAC = "02:76:6d:70:00:02"
"""Every guest's; it is in the state that clones are restored from. Locally administered."""

_ID_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"


def new_id(prefix: str = "") -> str:
    """Return a random id of 20 characters from `[a-z0-9]` after `prefix`: over 100 bits.

    Ids hold no dash, so that one can be a label of a host name beside a port.
    """
    number, letters = secrets.randbits(160), [prefix]  # more than are used: each id is as likely
    for _ in range(20):
        number, letter = divmod(number, len(_ID_ALPHABET))
        letters.append(_ID_ALPHABET[letter])
    return "".join(letters)


class Accelerator(StrEnum):
    """What executes guest instructions."""

    KVM = "kvm"
    TCG = "tcg"


class Transport(StrEnum):
    """What carries the agent's byte stream."""

    VSOCK = "vsock"
    SERIAL = "virtio-serial"


class MachineType(StrEnum):
    """The board that QEMU emulates."""

    Q35 = "q35"
    MICROVM = "microvm"


class Nic(StrEnum):
    """The network device of a machine; whether it is connected to anything is another matter."""

    NONE = "none"
    VIRTIO = "virtio-net"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineSpec:
    """What all clones of one snapshot share.

    Attributes:
        root: The read-only root file system (a raw erofs image), seen by the guest as its first
            virtio disk.
        memory_bytes: Guest RAM, a multiple of 1 MiB.
        disk_bytes: Size of the writable scratch disk, 0 for none. Without one the guest keeps what
            it writes in RAM; with one it is the guest's second virtio disk, ext4, and holds the
            upper layer of its root.
        cpu_model: What QEMU's `-cpu` takes.
        qemu_version: The hypervisor's version, as `query-version` gives it; a state loads only
            into the version that saved it.
        shape: What the engine makes of the rest, as `Engine.shape` says, for a later vmpool that
            makes something else of it; empty where none will ask.
    """

    root: Path
    memory_bytes: int
    accelerator: Accelerator
    transport: Transport
    machine_type: MachineType = MachineType.Q35
    vcpus: int = 1
    disk_bytes: int = 0
    cpu_model: str = "max"
    qemu_version: str = ""
    shape: str = ""
    nic: Nic = Nic.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """What a guest's virtual CPUs are, or all that a host can make them.

    Attributes:
        vendor: As CPUID tells it, `AuthenticAMD`.
        features: By the names that QEMU has for them.
    """

    vendor: str
    features: frozenset[str]

    def lacks(self, wanted: Processor) -> tuple[str, ...]:
        """Return the features of `wanted` that this one has not, sorted."""
        return tuple(sorted(wanted.features - self.features))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """What a machine is booted with; a restored machine needs none of it."""

    kernel: Path
    initrd: Path
    command_line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """What no two machines share.

    Attributes:
        directory: The machine's own directory, existing and empty: sockets, overlay, log. `rm -r`
            of it is the whole cleanup of what a dead machine leaves.
        cid: The vsock context id, reserved for this machine by the caller; `None` on virtio-serial.
    """

    directory: Path
    cid: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SerialAddress:
    """Where the agent's stream is reached when it runs over virtio-serial: a Unix socket."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class VsockAddress:
    """Where the agent's stream is reached when it runs over vhost-vsock."""

    cid: int
    port: int = AGENT_VSOCK_PORT


AgentAddress = SerialAddress | VsockAddress


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What makes a clone itself, told to the agent after every restore.

    Attributes:
        hostname: RFC 1123 label.
        machine_id: 32 lower-case hex digits, as in machine-id(5).
        seed: 64 bytes of fresh randomness, never stored.
    """

    hostname: str
    machine_id: str
    seed: bytes = field(repr=False)

    @classmethod
    def fresh(cls, hostname: str) -> Identity:
        """Return a new identity under `hostname`, random in everything else."""
        return cls.known(hostname, secrets.token_hex(16))

    @classmethod
    def known(cls, hostname: str, machine_id: str) -> Identity:
        """Return the identity of one that goes on as who it was, with fresh randomness."""
        return cls(hostname=hostname, machine_id=machine_id, seed=secrets.token_bytes(64))


@dataclass(frozen=True, slots=True)
class Unique:
    """User-space random generators start anew from the kernel's: no other clone draws the same."""


@dataclass(frozen=True, slots=True)
class Seed:
    """User-space random generators start anew from a number: who has the same draws the same.

    Attributes:
        value: From 0 to 2**64 - 1.
    """

    value: int


@dataclass(frozen=True, slots=True)
class Preserve:
    """User-space random generators go on where they were, in every clone of the same state.

    For a machine that goes on alone, as after a pause; or for twins on purpose.
    """


Rng = Unique | Seed | Preserve
"""How a clone's user-space generators come about; its kernel's generator is always its own."""


class ClockPolicy(StrEnum):
    """What a clone's wall clock shows when it wakes."""

    NOW = "now"
    FROZEN = "frozen-at-snapshot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waking:
    """How the randomness and the clock of a restored clone come about.

    Attributes:
        saved_ns: What the guest's clock showed when it was saved, Unix time: where a frozen clock
            goes on from.
    """

    rng: Rng = Unique()
    clock: ClockPolicy = ClockPolicy.NOW
    saved_ns: int = 0

    def clock_offset_ns(self, now_ns: int) -> int:
        """Return guest's clock minus host's for a clone that wakes when the host's shows `now_ns`.

        It stays so for the clone's life: a clock that was frozen runs, late.
        """
        match self.clock:
            case ClockPolicy.NOW:
                return 0
            case ClockPolicy.FROZEN:
                return self.saved_ns - now_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityReceipt:
    """The agent's word that an identity took, read back from the guest after setting it.

    Attributes:
        boot_id: The boot identity that the guest now shows, made new for this clone.
        entropy_bits: Entropy credited to the kernel's random generator.
        generators: The user-space generators that start anew in each run, from the kernel or from
            the number that the clone was given; one whose generators go on has `random` not among
            them.
        clock_error_ns: Guest wall clock minus what it was set to, after it was set.
    """

    hostname: str
    machine_id: str
    boot_id: str
    entropy_bits: int
    generators: tuple[str, ...]
    clock_error_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A program to run in a guest.

    Attributes:
        argv: Program and arguments, found on the guest's PATH; never empty. A shell line is
            `("/bin/bash", "-l", "-c", line)`.
        env: Added to the account's login environment.
        cwd: Absolute, or relative to the account's home; `None` for the home.
        user: Guest account to run as.
        timeout: Seconds until the process group is killed; `None` for no limit.
        stdin: Whether stdin is a pipe that the caller writes; `/dev/null` otherwise.
    """

    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict, repr=False)
    cwd: str | None = None
    user: str = DEFAULT_USER
    timeout: float | None = None
    stdin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """Python source to run in a fork of the interpreter that was warmed before the snapshot.

    Attributes are as in `Command`; the code runs as `__main__`, and the value of a last
    expression becomes a `Result`.
    """

    source: str
    env: dict[str, str] = field(default_factory=dict, repr=False)
    cwd: str | None = None
    user: str = DEFAULT_USER
    timeout: float | None = None
    stdin: bool = False


class Stream(StrEnum):
    """Which output a chunk came from; a terminal has but one."""

    STDOUT = "stdout"
    STDERR = "stderr"
    PTY = "pty"


@dataclass(frozen=True, slots=True)
class Started:
    """The first event of every execution that could be started.

    Attributes:
        pid: Process id in the guest; the process leads its own group and session.
        execution_count: In a context, how many its interpreter has been given, this one included.
    """

    pid: int
    execution_count: int | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """Bytes as the program wrote them, at most 64 KiB an event, not aligned to characters."""

    stream: Stream
    data: bytes


@dataclass(frozen=True, slots=True)
class Result:
    """A value that code showed, as a MIME bundle: `text/plain` always, richer forms beside it.

    Binary forms (`image/png`) are base64 text. There are 64 at most; of more, `text/plain` tells.

    Attributes:
        is_main: It is the value of the last expression, and not one that was shown by the way.
        display_id: A later result with the same one takes this one's place.
    """

    mime: dict[str, str]
    is_main: bool = False
    display_id: str | None = None


@dataclass(frozen=True, slots=True)
class Raised:
    """An exception that ended code, as Python would have printed it."""

    name: str
    value: str
    traceback: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The last event of every execution that could be started; output is complete before it.

    Attributes:
        exit_code: 0 to 255, `None` when a signal ended the process.
        signal: Number of the signal that ended it, `None` when it exited.
        timed_out: The process group was killed because its time was up.
        out_of_memory: The guest's kernel killed a process of the group for want of memory.
        context_lost: The interpreter of a context ended with it, and begins anew without its state.
    """

    exit_code: int | None
    signal: int | None = None
    timed_out: bool = False
    out_of_memory: bool = False
    context_lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalSize:
    """A terminal's size in characters, each from 1 to 65,535."""

    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class Attached:
    """The first event of following a process that runs already.

    Attributes:
        pid: Process id in the guest.
        skipped_bytes: What it wrote before the first output that follows, and is not told.
    """

    pid: int
    skipped_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """A kept process of a guest: one that outlives whoever began it.

    What it was begun with may hold surrogate escapes, for what is no UTF-8.

    Attributes:
        pid: Process id in the guest.
        tag: Its beginner's word for it.
        cwd: As it was asked for, `None` for the account's home.
        terminal: Size of its terminal, `None` when it runs at none.
        takes_input: Whether its stdin is open.
        started_ns: Unix time, by the guest's clock.
        output_bytes: What it has written so far; `backlog_bytes` of it are held.
        ended: How it ended, `None` while it runs.
        cut: `env` and the last of `argv` were too large to be remembered.
    """

    pid: int
    tag: str | None
    argv: tuple[str, ...]
    env: dict[str, str] = field(repr=False)
    cwd: str | None
    user: str
    terminal: TerminalSize | None
    takes_input: bool
    started_ns: int
    output_bytes: int
    backlog_bytes: int
    ended: Exited | None
    cut: bool = False


ExecutionEvent = Started | Output | Result | Raised | Exited


class FileKind(StrEnum):
    """What a directory entry is, links not followed."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkEnd:
    """What a symbolic link leads to in the end; `mode` is its permission bits."""

    path: str
    kind: FileKind
    mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """One entry of a guest's file system.

    Attributes:
        path: Absolute path in the guest.
        mode: Permission bits.
        owner: Account name, or the number when it has none; `group` likewise.
        modified_ns: Unix time.
        target: Where a symbolic link points, as written in it.
        resolved: What it leads to; `None` for what is no link, and for one that leads nowhere that
            the asking account can see.
        metadata: The words that its writer left with it.
    """

    path: str
    kind: FileKind
    size_bytes: int
    mode: int
    owner: str
    group: str
    modified_ns: int
    target: str | None = None
    resolved: LinkEnd | None = None
    metadata: dict[str, str] = field(default_factory=dict)
