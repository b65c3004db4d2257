"""Landlock: rules that a process puts itself under, and that hold whatever its account may.

A second wall behind the root directory and the namespaces, and the only one for the files of the
host where this process may make neither. See landlock(7).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import stat
import struct
from typing import TYPE_CHECKING

from vmpool.engine.qemu.jail import calls

if TYPE_CHECKING:
    from collections.abc import Iterable

# asm/unistd_64.h
_SYS_CREATE_RULESET = 444
_SYS_ADD_RULE = 445
_SYS_RESTRICT_SELF = 446

# linux/landlock.h
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_EXECUTE = 1 << 0
_WRITE_FILE = 1 << 1
_READ_FILE = 1 << 2
_READ_DIR = 1 << 3
_TRUNCATE = 1 << 14
_IOCTL_DEVICE = 1 << 15
_PATH_BENEATH = struct.Struct("=Qi")

# Rights to files that each version of Landlock knows of: all bits up to a last one.
_FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1}
_FILE_RIGHTS_SINCE_5 = (1 << 16) - 1
_TCP_RIGHTS = 0b11  # bind and connect, since version 4
_SCOPES = 0b11  # abstract sockets and signals, since version 6


def version() -> int:
    """Return the version of Landlock that this kernel has on; 0 for none."""
    found = ctypes.CDLL(None).syscall(_SYS_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    return max(int(found), 0)


def restrict(
    known: int, *, readable: Iterable[str], devices: Iterable[str], handed: Iterable[int]
) -> None:
    """Leave the calling thread, which can get no new privileges, these files and nothing else.

    It opens no TCP connection, and reaches processes and abstract sockets only of those that it
    starts, where the kernel's Landlock is new enough. What is open stays open.

    Args:
        known: The `version` of Landlock here.
        readable: Files and directories to read and execute.
        devices: To open and use.
        handed: Descriptors of files that may be opened once more, as they are open already; other
            kinds of descriptor are passed over.

    Raises:
        HostError: The kernel refused; `isolation_failed`.
    """
    rights = _FILE_RIGHTS.get(known, _FILE_RIGHTS_SINCE_5)
    attributes = struct.pack(
        "=QQQ", rights, _TCP_RIGHTS if known >= 4 else 0, _SCOPES if known >= 6 else 0
    )
    # An older kernel takes the rest of the structure when there is nothing in it.
    ruleset = calls.syscall(_SYS_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in readable:
            _allow_path(ruleset, path, rights & (_EXECUTE | _READ_FILE | _READ_DIR))
        for path in devices:
            _allow_path(ruleset, path, rights & (_READ_FILE | _WRITE_FILE | _IOCTL_DEVICE))
        for descriptor in handed:
            _allow_again(ruleset, descriptor, rights)
        calls.syscall(_SYS_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow_path(ruleset: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        _allow(ruleset, place, rights)
    finally:
        os.close(place)


def _allow_again(ruleset: int, descriptor: int, rights: int) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        return
    writable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
    _allow(ruleset, descriptor, rights & (_READ_FILE | (_WRITE_FILE | _TRUNCATE) * writable))


def _allow(ruleset: int, place: int, rights: int) -> None:
    if not stat.S_ISDIR(os.fstat(place).st_mode):
        rights &= ~_READ_DIR
    calls.syscall(_SYS_ADD_RULE, ruleset, _RULE_PATH_BENEATH, _PATH_BENEATH.pack(rights, place), 0)
