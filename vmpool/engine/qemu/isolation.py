"""Isolation: what a QEMU process is cut off from before its first instruction.

Namespaces, credentials, the descriptor table and `no_new_privs` belong to a thread in Linux, and a
child inherits those of the thread that makes it. So a short-lived thread cuts itself off and then
spawns QEMU: no chain of helper programs, no code of ours between fork and exec. The C library's
wrappers would change the credentials of every thread, so plain system calls set them.

Each QEMU runs as a user id of its own that no account has: as one and the same, a guest that broke
out of its QEMU could open the memory of all others through /proc.

Without root a thread may not do this; then `unshare` does what the kernel allows.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import subprocess
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from vmpool.errors import HostError

# linux/sched.h
_CLONE_FS = 0x00000200
_CLONE_FILES = 0x00000400
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWPID = 0x20000000
_CLONE_NEWNET = 0x40000000

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h

# asm/unistd_64.h; QEMU's machines here are x86-64 as well
_SYS_SETGROUPS = 116
_SYS_SETRESUID = 117
_SYS_SETRESGID = 119
_SYS_CLOSE_RANGE = 436

_CLOSE_RANGE_CLOEXEC = 4  # linux/close_range.h

_UID_RANGES = (
    # Between the ids that systemd gives containers and those it keeps for foreign images; see
    # systemd's docs/UIDS-GIDS.md.
    range(0x70000000, 0x7FFE0000),
    # Where a container's root has but 2^16 ids: those of systemd's dynamic users.
    range(61184, 65520),
)

_UNSHARE = ("unshare", "--user", "--net", "--ipc", "--uts", "--")


class Confinement(StrEnum):
    """How far QEMU processes are cut off from the host, best first."""

    ACCOUNT = "a user id of its own for each, own namespaces"
    USER_NAMESPACE = "own namespaces, our account"
    NONE = "our account, no namespaces"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whom one QEMU runs as; its group has the same number, and neither has a name.

    Attributes:
        groups: Supplementary ones.
    """

    uid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What each QEMU is started with.

    Attributes:
        uids: What a user id is drawn from for each; empty for our own account, which then is not
            root.
        account: Whom the one QEMU runs as that this is for; `None` when that is not drawn yet.
        prefix: Put before its command line.
    """

    confinement: Confinement
    uids: range = range(0)
    account: Account | None = None
    prefix: tuple[str, ...] = ()

    def for_one(self, *groups: int) -> Isolation:
        """Return this for a single QEMU, with an account drawn for it that has `groups`."""
        if not self.uids:
            return self
        return replace(self, account=Account(uid=secrets.choice(self.uids), groups=groups))

    def enter(self) -> None:
        """Cut the calling thread off, for good: call it in a thread that ends soon after.

        What is not for one QEMU yet draws an account.

        Raises:
            HostError: The kernel refused; code `isolation_failed`. The thread is in between.
        """
        account = self.account or self.for_one().account
        namespaces = _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWPID
        own = _CLONE_FS | _CLONE_FILES
        _call("unshare", own | (namespaces if account is not None else 0))
        # Whatever we inherited ourselves goes no further; the spawn names what does.
        _call("syscall", _SYS_CLOSE_RANGE, 3, ctypes.c_uint(-1), _CLOSE_RANGE_CLOEXEC)
        os.chdir("/")  # of this thread alone, now that it shares no directory
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if account is not None:
            groups = (ctypes.c_uint32 * len(account.groups))(*account.groups)
            _call("syscall", _SYS_SETGROUPS, len(groups), groups)
            _call("syscall", _SYS_SETRESGID, *[ctypes.c_uint32(account.uid)] * 3)
            _call("syscall", _SYS_SETRESUID, *[ctypes.c_uint32(account.uid)] * 3)


def detect() -> Isolation:
    """Return the best isolation that this process may give its children. Blocks.

    Raises:
        HostError: We are root, but of a user namespace with too few ids; code `account_unfit`.
    """
    if os.geteuid() == 0:
        maps = [Path(f"/proc/self/{kind}_map").read_text() for kind in ("uid", "gid")]
        return Isolation(confinement=Confinement.ACCOUNT, uids=usable_uids(*maps))
    tried = subprocess.run(
        [*_UNSHARE, "true"], check=False, capture_output=True, timeout=10, close_fds=True
    )
    if tried.returncode == 0:
        return Isolation(confinement=Confinement.USER_NAMESPACE, prefix=_UNSHARE)
    return Isolation(confinement=Confinement.NONE)


def usable_uids(*maps: str) -> range:
    """Return the ids that QEMUs may have where `maps` say which there are; see user_namespaces(7).

    Raises:
        HostError: There are none to spare; code `account_unfit`.
    """
    for uids in _UID_RANGES:
        if all(_covers(text, uids) for text in maps):
            return uids
    raise HostError(
        "no user ids are left here to run QEMU as",
        code="account_unfit",
        remedy="give this container 65536 user ids, or start vmpool as an account that is not root",
    )


def _covers(map_text: str, uids: range) -> bool:
    extents = [[int(part) for part in line.split()] for line in map_text.splitlines()]
    return any(first <= uids[0] and uids[-1] < first + count for first, _, count in extents)


def _call(function: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, function)(*arguments) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise HostError(f"cannot isolate QEMU: {function}: {reason}", code="isolation_failed")
