"""System: every effect that the agent has on the machine as a whole.

One small seam, so that tests run the real agent as an ordinary process on a machine that it must
not change: what sets a clock, a name or a random generator goes through here, nothing else does.
`LinuxSystem` is the guest's; `tests/fake_guest.py` holds one that only remembers.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import mmap
import os
import pwd
import signal
import socket
import struct
import sys
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from contextlib import AbstractContextManager

_RNDADDENTROPY = 0x40085203  # linux/random.h
_RNDRESEEDCRNG = 0x5207  # linux/random.h
_GET_LOCAL_CID = 0x7B9  # linux/vm_sockets.h; without a device it answers with one of no guest's
_FIRST_GUEST_CID = 3
_CID_ANY = 0xFFFFFFFF
_MS_BIND = 4096  # sys/mount.h
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_RUN = "/run/vmpool"
_MAP_POPULATE = 0x8000  # linux/mman.h; Python has it since 3.10
_ANONYMOUS_NOW = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_POPULATE
_LEFT_FREE = 8 * 1024 * 1024
_PAGE_TABLE_SHARE = 256
"""Bytes that are not asked for, beside the kernel's reserve and the page tables of what is: below
its reserve the kernel drops caches and then kills. A page table takes a 512th of what it maps."""
_ACCOUNT_FILES = ("/etc/passwd", "/etc/group")


class Account(NamedTuple):
    """Who a process runs as."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


class System(Protocol):
    """The machine, as far as the agent changes it."""

    def account(self, name: str) -> Account:
        """Return an account.

        Raises:
            KeyError: There is none of that name.
        """

    def become(self, account: Account) -> None:
        """Take on an account's ids for good, root's capabilities dropped with them."""

    def acting_as(self, account: Account) -> AbstractContextManager[None]:
        """Take on an account's ids for as long as it takes to start a program, which keeps them.

        Nobody of that account may read the agent's memory or end it meanwhile.
        """

    def protect(self) -> None:
        """Exempt this process from the kernel's out-of-memory killer."""

    def unprotect(self) -> None:
        """Make this process the killer's prey like any other."""

    def oom_kills(self) -> int:
        """Return how many processes the kernel has killed for want of memory."""

    def cid(self) -> int | None:
        """Return the context id that the host reaches this machine by; `None` without vsock."""

    def set_clock(self, clock_ns: int) -> None:
        """Set the wall clock to a Unix time in ns."""

    def clock(self) -> int:
        """Return what the wall clock shows, Unix time in ns."""

    def add_entropy(self, seed: bytes) -> int:
        """Credit a seed to the kernel's generator and reseed it; return the bits credited."""

    def set_hostname(self, name: str) -> str:
        """Set the host name; return what the kernel then says."""

    def set_machine_id(self, machine_id: str) -> str:
        """Set the machine id; return what then can be read."""

    def renew_boot_id(self) -> str:
        """Make a new boot identity and return it as then can be read.

        Raises:
            OSError: It did not take.
        """

    def settle(self) -> None:
        """Give freed memory back, write out and drop the page cache."""

    def clear_free_memory(self) -> None:
        """Overwrite with zeros what was freed and is not used again."""


class LinuxSystem:
    """A Linux guest of which the agent is the master; runs as root."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}
        self._accounts_as_of: list[tuple[int, int, int]] = []

    def account(self, name: str) -> Account:
        """See `System`."""
        # Looking one up is dear: the C library reads three files for it.
        as_of = [_state_of(path) for path in _ACCOUNT_FILES]
        if as_of != self._accounts_as_of:
            self._accounts = {}
            self._accounts_as_of = as_of
        if name not in self._accounts:
            entry = pwd.getpwnam(name)
            groups = tuple(os.getgrouplist(name, entry.pw_gid))
            self._accounts[name] = Account(name, entry.pw_uid, entry.pw_gid, groups, entry.pw_dir)
        return self._accounts[name]

    def become(self, account: Account) -> None:
        """See `System`."""
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        # Leaving uid 0 empties the permitted, effective and ambient capability sets.
        os.setresuid(account.uid, account.uid, account.uid)

    @contextlib.contextmanager
    def acting_as(self, account: Account) -> Iterator[None]:
        """See `System`."""
        # A child has this from its parent, and one that is exempt would be so for good.
        with contextlib.suppress(OSError):
            self.unprotect()
        try:
            with acting_as(account):
                yield
        finally:
            with contextlib.suppress(OSError):
                self.protect()

    def protect(self) -> None:
        """See `System`."""
        _write("/proc/self/oom_score_adj", "-1000")

    def unprotect(self) -> None:
        """See `System`."""
        _write("/proc/self/oom_score_adj", "0")

    def oom_kills(self) -> int:
        """See `System`."""
        return oom_kills()

    def cid(self) -> int | None:
        """See `System`."""
        return local_cid()

    def set_clock(self, clock_ns: int) -> None:
        """See `System`."""
        time.clock_settime_ns(time.CLOCK_REALTIME, clock_ns)

    def clock(self) -> int:
        """See `System`."""
        return time.time_ns()

    def add_entropy(self, seed: bytes) -> int:
        """See `System`."""
        bits = len(seed) * 8
        fd = os.open("/dev/urandom", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _RNDADDENTROPY, struct.pack("ii", bits, len(seed)) + seed)
            fcntl.ioctl(fd, _RNDRESEEDCRNG)
        finally:
            os.close(fd)
        return bits

    def set_hostname(self, name: str) -> str:
        """See `System`."""
        socket.sethostname(name)
        # What reads these is a convenience; a read-only /etc must not cost the clone.
        with contextlib.suppress(OSError):
            _write("/etc/hostname", name + "\n")
        with contextlib.suppress(OSError):
            _name_in_hosts(name)
        return socket.gethostname()

    def set_machine_id(self, machine_id: str) -> str:
        """See `System`."""
        try:
            _write("/etc/machine-id", machine_id + "\n", os.O_CREAT)
        except OSError:
            _cover("/etc/machine-id", machine_id + "\n")
        return _read("/etc/machine-id").strip()

    def renew_boot_id(self) -> str:
        """See `System`."""
        drawn = os.urandom(16).hex()
        variant = "89ab"[int(drawn[16], 16) % 4]
        boot_id = f"{drawn[:8]}-{drawn[8:12]}-4{drawn[13:16]}-{variant}{drawn[17:20]}-{drawn[20:]}"
        _cover(_BOOT_ID, boot_id + "\n")
        shown = _read(_BOOT_ID).strip()
        if shown != boot_id:
            raise OSError(f"boot identity is {shown}, not {boot_id}")
        return shown

    def settle(self) -> None:
        """See `System`."""
        gc.collect()
        trim_heap()
        os.sync()
        with contextlib.suppress(OSError):
            _write("/proc/sys/vm/drop_caches", "3")

    def clear_free_memory(self) -> None:
        """See `System`."""
        # The kernel clears what it gives us; what it does not find stays as it was.
        with contextlib.suppress(OSError):
            with open("/proc/zoneinfo", "rb") as file:  # noqa: PTH123
                reserve = reserved_pages(file) * mmap.PAGESIZE
            if (size := clearable(free_memory(), reserve)) > 0:
                mmap.mmap(-1, size, flags=_ANONYMOUS_NOW).close()


@contextlib.contextmanager
def acting_as(account: Account) -> Iterator[None]:
    """Have an account's ids for the length of a block, in a process that is root's.

    The saved user id stays root's: it is the way back, and keeps the account from tracing this
    process. Of a program that is started the kernel makes that the account's as well, and leaves it
    no capabilities.
    """
    groups = os.getgroups()
    # Of all signals that the account may now send us this one would end us.
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, 0)
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(groups)
        signal.signal(signal.SIGTERM, handler)


def oom_kills() -> int:
    """Return the kernel's count of processes killed for want of memory; 0 when it has none."""
    with contextlib.suppress(OSError), open("/proc/vmstat", "rb") as file:  # noqa: PTH123
        for line in file:
            if line.startswith(b"oom_kill "):
                return int(line.split()[1])
    return 0


def local_cid() -> int | None:
    """Return the machine's context id as its vsock device has it now, `None` without a device."""
    try:
        fd = os.open("/dev/vsock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        answer = fcntl.ioctl(fd, _GET_LOCAL_CID, bytes(4))
    except OSError:
        return None
    finally:
        os.close(fd)
    cid = int.from_bytes(answer, sys.byteorder)
    return cid if _FIRST_GUEST_CID <= cid < _CID_ANY else None


def free_memory() -> int:
    """Return the bytes that nothing uses, not even as a cache; 0 when the kernel does not tell."""
    with contextlib.suppress(OSError), open("/proc/meminfo", "rb") as file:  # noqa: PTH123
        for line in file:
            if line.startswith(b"MemFree:"):
                return int(line.split()[1]) * 1024
    return 0


def reserved_pages(zoneinfo: Iterable[bytes]) -> int:
    """Return the pages that the kernel keeps free: its high marks, and zones' for others' sake."""
    pages = 0
    for line in zoneinfo:
        name, _, rest = line.strip().partition(b" ")
        if name == b"high":
            pages += int(rest)
        elif name == b"protection:":
            pages += max(int(share) for share in rest.strip(b" ()").split(b","))
    return pages


def clearable(free: int, reserve: int) -> int:
    """Return how many of the free bytes can be asked for without harm; 0 or less for none."""
    return free - reserve - _LEFT_FREE - free // _PAGE_TABLE_SHARE


def trim_heap() -> None:
    """Give the C heap's free pages back, where the C library can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """Mount; Python's `os` cannot.

    Raises:
        OSError: As mount(2).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags),
        options.encode() or None,
    )  # fmt: skip
    if result:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), target)


def _state_of(path: str) -> tuple[int, int, int]:
    """Return what changes when a file does."""
    try:
        state = os.stat(path)  # noqa: PTH116
    except OSError:
        return 0, 0, 0
    return state.st_ino, state.st_ctime_ns, state.st_size


def _write(path: str, text: str, flags: int = 0) -> None:
    # No `Path.write_text`: it would create what a kernel without the file does not have.
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | flags, 0o644)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536).decode("utf-8", "replace")
    finally:
        os.close(fd)


def _cover(path: str, text: str) -> None:
    """Put a file of ours over one that cannot be written; cover it once, then write ours."""
    ours = f"{_RUN}/{path.rpartition('/')[2]}"
    try:
        _write(ours, text)
    except FileNotFoundError:
        os.makedirs(_RUN, mode=0o755, exist_ok=True)  # noqa: PTH103
        _write(ours, text, os.O_CREAT)
        os.chmod(ours, 0o444)  # noqa: PTH101
        mount(ours, path, "", _MS_BIND)


def _name_in_hosts(name: str) -> None:
    try:
        lines = _read("/etc/hosts").splitlines()
    except FileNotFoundError:
        lines = ["127.0.0.1 localhost"]
    kept = [line for line in lines if not line.startswith("127.0.1.1")]
    _write("/etc/hosts", "\n".join([*kept, f"127.0.1.1 {name}"]) + "\n", os.O_CREAT)


def become_subreaper() -> None:
    """Have orphans of this process handed to it, as they are to the first process."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER, linux/prctl.h
