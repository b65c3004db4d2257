"""Isolation: what a QEMU process is cut off from before its first instruction.

Namespaces, credentials, the descriptor table and `no_new_privs` belong to a thread in Linux, and a
child inherits those of the thread that makes it. So a short-lived thread cuts itself off and then
spawns QEMU: no chain of helper programs, no code of ours between fork and exec. The C library's
wrappers would change the credentials of every thread, so plain system calls set them.

Without root a thread may not do this; then `unshare` does what the kernel allows.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import subprocess
from dataclasses import dataclass
from enum import StrEnum

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

_UNSHARE = ("unshare", "--user", "--net", "--ipc", "--uts", "--")


class Confinement(StrEnum):
    """How far QEMU processes are cut off from the host, best first."""

    ACCOUNT = "own account and namespaces"
    USER_NAMESPACE = "own namespaces, our account"
    NONE = "our account, no namespaces"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The unprivileged account that QEMU runs as."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What each QEMU is started with.

    Attributes:
        account: Whom it runs as; `None` for our own account, which then is not root.
        prefix: Put before its command line.
    """

    confinement: Confinement
    account: Account | None = None
    prefix: tuple[str, ...] = ()

    def enter(self) -> None:
        """Cut the calling thread off, for good: call it in a thread that ends soon after.

        Raises:
            HostError: The kernel refused; code `isolation_failed`. The thread is in between.
        """
        namespaces = _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWUTS | _CLONE_NEWPID
        own = _CLONE_FS | _CLONE_FILES
        _call("unshare", own | (namespaces if self.account is not None else 0))
        # Whatever we inherited ourselves goes no further; the spawn names what does.
        _call("syscall", _SYS_CLOSE_RANGE, 3, ctypes.c_uint(-1), _CLOSE_RANGE_CLOEXEC)
        os.chdir("/")  # of this thread alone, now that it shares no directory
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if self.account is not None:
            groups = (ctypes.c_uint32 * len(self.account.groups))(*self.account.groups)
            _call("syscall", _SYS_SETGROUPS, len(groups), groups)
            _call("syscall", _SYS_SETRESGID, *[ctypes.c_uint32(self.account.gid)] * 3)
            _call("syscall", _SYS_SETRESUID, *[ctypes.c_uint32(self.account.uid)] * 3)


def detect(account: str | None = None) -> Isolation:
    """Return the best isolation that this process may give its children. Blocks.

    Args:
        account: Whom QEMU runs as when we are root; by default `vmpool` where there is such an
            account, `nobody` elsewhere.

    Raises:
        HostError: There is no such account, or it is root; code `account_unfit`.
    """
    if os.geteuid() == 0:
        return Isolation(confinement=Confinement.ACCOUNT, account=_account(account))
    tried = subprocess.run(
        [*_UNSHARE, "true"], check=False, capture_output=True, timeout=10, close_fds=True
    )
    if tried.returncode == 0:
        return Isolation(confinement=Confinement.USER_NAMESPACE, prefix=_UNSHARE)
    return Isolation(confinement=Confinement.NONE)


def _account(name: str | None) -> Account:
    for candidate in (name,) if name is not None else ("vmpool", "nobody"):
        try:
            entry = pwd.getpwnam(candidate)
        except KeyError:
            continue
        if entry.pw_uid == 0:
            break
        groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
        return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid, groups=groups)
    raise HostError(
        f"no unprivileged account {name or 'vmpool'!r} to run QEMU as",
        code="account_unfit",
        remedy=f"useradd --system --no-create-home --shell /usr/sbin/nologin {name or 'vmpool'}",
    )


def _call(function: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, function)(*arguments) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise HostError(f"cannot isolate QEMU: {function}: {reason}", code="isolation_failed")
