"""Seclusion: a run of tests has `/run/netns` to itself, so that runs beside it are none of its own.

Names of network namespaces are files that are mounted; a mount namespace of this process's own,
with an empty directory where they are made, keeps those of others out and ours in. When the run
ends, whatever way, what is left in there goes with it.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

NAMES = Path("/run/netns")

_CLONE_NEWNS = 0x00020000  # linux/sched.h
_MS_REC, _MS_SLAVE = 0x4000, 0x80000  # linux/mount.h


def seclude() -> bool:
    """Have this process, and what it starts from now on, name network namespaces by itself.

    Call it while there is one thread. What the host mounts meanwhile is seen here all the same.

    Returns:
        Whether it does; who may not do that may not make network namespaces either.
    """
    if os.geteuid() != 0:
        return False
    try:
        NAMES.mkdir(mode=0o755, exist_ok=True)
        _call("unshare", _CLONE_NEWNS)
        _call("mount", b"none", b"/", None, _MS_REC | _MS_SLAVE, None)
        _call("mount", b"vmpool-tests", os.fsencode(NAMES), b"tmpfs", 0, b"mode=0755")
    except PermissionError:
        return False
    return True


def _call(function: str, *arguments: object) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), function)
