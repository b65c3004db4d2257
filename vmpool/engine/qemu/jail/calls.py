"""Calls: the system calls that wall the calling thread in, which Python does not have.

Credentials, namespaces and the root directory belong to a thread in Linux. The C library's wrappers
would change the credentials of every thread of this process, so plain system calls set them.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from vmpool.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# linux/sched.h
OWN_DIRECTORY = 0x00000200  # CLONE_FS
OWN_DESCRIPTORS = 0x00000400  # CLONE_FILES
OWN_MOUNTS = 0x00020000  # CLONE_NEWNS
OWN_NAMESPACES = 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000  # UTS, IPC, PID, NET

# linux/mount.h
READ_ONLY = 0x1
NO_SUID = 0x2
NO_DEVICES = 0x4
NO_EXEC = 0x8
REMOUNT = 0x20
BIND = 0x1000
RECURSIVE = 0x4000
PRIVATE = 0x40000

_DETACH = 0x2  # linux/fs.h: MNT_DETACH

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h
_KEYCTL_JOIN_SESSION_KEYRING = 1  # linux/keyctl.h
_CLOSE_RANGE_CLOEXEC = 4  # linux/close_range.h

# asm/unistd_64.h; QEMU's machines here are x86-64 as well
_SYS_SETGROUPS = 116
_SYS_SETRESUID = 117
_SYS_SETRESGID = 119
_SYS_PIVOT_ROOT = 155
_SYS_KEYCTL = 250
_SYS_CLOSE_RANGE = 436

_LIBC = ctypes.CDLL(None, use_errno=True)


def unshare(kinds: int) -> None:
    """Give the calling thread things of its own, of those named above.

    Raises:
        HostError: The kernel refused, as all here may: `isolation_failed`.
    """
    _call("unshare", ctypes.c_int(kinds))


def enter_mounts(descriptor: int) -> None:
    """Move the calling thread, whose directory is its own, to the root of a mount namespace."""
    _call("setns", descriptor, OWN_MOUNTS)


def mount(
    source: str | None, target: str, kind: str | None, flags: int, options: str | None = None
) -> None:
    """Mount as mount(2)."""
    texts = [None if text is None else os.fsencode(text) for text in (source, target, kind)]
    _call("mount", *texts, ctypes.c_ulong(flags), None if options is None else options.encode())


def change_root() -> None:
    """Make the working directory, a mount, the root of this mount namespace; detach the old one."""
    # Old and new root on one place need no directory for the old one; pivot_root(2) has it so.
    syscall(_SYS_PIVOT_ROOT, b".", b".")
    _call("umount2", b".", _DETACH)


def close_on_exec() -> None:
    """Let no descriptor of the calling thread above 2 reach what it executes."""
    syscall(_SYS_CLOSE_RANGE, 3, ctypes.c_uint(-1), _CLOSE_RANGE_CLOEXEC)


def forbid_new_privileges() -> None:
    """Have no program give the calling thread more rights than it has, ever."""
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def become(uid: int, groups: Sequence[int]) -> None:
    """Give the calling thread that user and group id, and take its capabilities.

    Keys that our account holds in the kernel stay behind, too.
    """
    ids = (ctypes.c_uint32 * len(groups))(*groups)
    syscall(_SYS_SETGROUPS, len(groups), ids)
    syscall(_SYS_SETRESGID, *[ctypes.c_uint32(uid)] * 3)
    syscall(_SYS_SETRESUID, *[ctypes.c_uint32(uid)] * 3)
    syscall(_SYS_KEYCTL, _KEYCTL_JOIN_SESSION_KEYRING, None)


def file_system(path: Path) -> int:
    """Return the number of the kind of file system that holds `path`, as statfs(2)."""
    answer = (ctypes.c_long * 32)()  # more than struct statfs has; its first field is the kind
    _call("statfs", os.fsencode(path), answer)
    return int(answer[0])


def syscall(number: int, *arguments: object) -> int:
    """Return what a plain system call returns.

    Raises:
        HostError: It failed; `isolation_failed`.
    """
    return _call("syscall", number, *arguments)


def _call(function: str, *arguments: object) -> int:
    result = getattr(_LIBC, function)(*arguments)
    if result < 0:
        reason = os.strerror(ctypes.get_errno())
        what = f"{function} {arguments[0]}" if function == "syscall" else function
        raise HostError(f"cannot isolate QEMU: {what}: {reason}", code="isolation_failed")
    return int(result)
