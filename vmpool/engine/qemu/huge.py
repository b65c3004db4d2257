"""Huge: a file without a name in memory, in pages as large as the processor has.

It takes a tenth of the time to have that a file of small pages takes, and several processes can map
it. Whether the kernel makes such files for everybody is its administrator's to say, and the default
is no; on a file system of its own, which is mounted nowhere, whoever may mount says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from pathlib import Path

# asm-generic/unistd.h, and the same everywhere
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432

# linux/mount.h
_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6
_NOSUID, _NODEV, _NOEXEC = 2, 4, 8

_SWAPS = Path("/proc/swaps")

_SYSCALL = ctypes.CDLL(None, use_errno=True).syscall
_SYSCALL.restype = ctypes.c_long


def create(size_bytes: int) -> int:
    """Return a descriptor of a new file, to read and write and the caller's to close.

    Its space is taken: writing to it does not fail for want of memory. It is gone with the last who
    has it open or mapped, and on no disk before. Only its owner can open it again, through /proc.

    Raises:
        OSError: This process may not mount, the kernel has no such files or would swap them, or
            there is no memory.
    """
    with contextlib.ExitStack() as held:
        context = _call(_FSOPEN, b"tmpfs", _CLOEXEC)
        held.callback(os.close, context)
        _call(_FSCONFIG, context, _SET_STRING, b"huge", b"always", 0)
        _call(_FSCONFIG, context, _SET_STRING, b"size", str(size_bytes).encode(), 0)
        _keep_from_swap(context)
        _call(_FSCONFIG, context, _CREATE, None, None, 0)
        mount = _call(_FSMOUNT, context, _CLOEXEC, _NOSUID | _NODEV | _NOEXEC)
        held.callback(os.close, mount)
        file = os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=mount)
        try:
            os.posix_fallocate(file, 0, size_bytes)
        except BaseException:
            os.close(file)
            raise
        return file


def _keep_from_swap(context: int) -> None:
    """Have a file system's files stay in memory: what is in them is a guest's."""
    try:
        _call(_FSCONFIG, context, _SET_FLAG, b"noswap", None, 0)
    except OSError as err:
        # A kernel before 6.4, or a container's root: all the same where nothing is swapped.
        if err.errno != errno.EINVAL or len(_SWAPS.read_text().splitlines()) > 1:
            raise


def _call(number: int, *arguments: int | bytes | None) -> int:
    result = int(_SYSCALL(ctypes.c_long(number), *map(_as_c, arguments)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _as_c(argument: int | bytes | None) -> ctypes.c_long | ctypes.c_char_p:
    return ctypes.c_long(argument) if isinstance(argument, int) else ctypes.c_char_p(argument)
