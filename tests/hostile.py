"""Hostile: what somebody does who has broken out of a guest, as a program in QEMU's place.

It imports the standard library alone, runs within the walls, and prints what it got through. Its
one argument is a JSON object of what to attack.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROC = Path("/proc")
LIBC = ctypes.CDLL(None, use_errno=True)

# asm/unistd_64.h, linux/keyctl.h
SYS_INIT_MODULE, SYS_KEXEC_LOAD, SYS_KEYCTL, SYS_FSOPEN = 175, 246, 250, 430
GET_KEYRING, SESSION_KEYRING = 0, -3


def refused(result: int) -> None:
    """Raise what a call of the C library failed with."""
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def forbidden(result: int) -> None:
    """Raise that a call was not permitted, or is not there; any other failure got through."""
    if ctypes.get_errno() in {errno.EPERM, errno.ENOSYS}:
        refused(result)


def read(at: dict[str, Any]) -> None:
    Path(at["file"]).read_bytes()


def dial_path(at: dict[str, Any]) -> None:
    with socket.socket(socket.AF_UNIX) as dialled:
        dialled.connect(at["socket"])


def dial_name(at: dict[str, Any]) -> None:
    with socket.socket(socket.AF_UNIX) as dialled:
        dialled.connect("\0" + at["name"])


def dial_loopback(at: dict[str, Any]) -> None:
    socket.create_connection(("127.0.0.1", at["port"]), timeout=5).close()


def read_key(at: dict[str, Any]) -> None:
    refused(held := LIBC.syscall(SYS_KEYCTL, GET_KEYRING, SESSION_KEYRING, 0))
    if held != at["keyring"]:
        raise PermissionError


def see_others(at: dict[str, Any]) -> None:
    if not {path.name for path in PROC.iterdir() if path.name.isdecimal()} - {
        os.fspath((PROC / "self").readlink())
    }:
        raise ProcessLookupError


def see_kernel(_: dict[str, Any]) -> None:
    (PROC / "sys/kernel/core_pattern").stat()


def end_other(at: dict[str, Any]) -> None:
    os.kill(at["pid"], 0)


def trace(at: dict[str, Any]) -> None:
    refused(LIBC.ptrace(0x4206, at["pid"], None, None))  # PTRACE_SEIZE, which stops nobody


def open_memory(at: dict[str, Any]) -> None:
    os.close(os.open(f"/proc/{at['pid']}/mem", os.O_RDWR))


def mount(_: dict[str, Any]) -> None:
    """Begin to; should it be granted, nothing is mounted on this host."""
    refused(LIBC.syscall(SYS_FSOPEN, b"tmpfs", 0))


def leave_root(_: dict[str, Any]) -> None:
    os.chroot("/proc")


def become_root(_: dict[str, Any]) -> None:
    os.setresuid(0, 0, 0)


def load_module(_: dict[str, Any]) -> None:
    """One that is none."""
    forbidden(LIBC.syscall(SYS_INIT_MODULE, b"x", 1, b""))


def load_kernel(_: dict[str, Any]) -> None:
    """With flags that there are not: without any, the one that is loaded would be let go of."""
    forbidden(LIBC.syscall(SYS_KEXEC_LOAD, 0, 0, None, 0xFFFF))


def write(_: dict[str, Any]) -> None:
    """Create a file anywhere at all."""
    top = Path("/")
    for place in (top, *top.glob("*/"), *top.glob("*/*/")):
        with contextlib.suppress(OSError):
            file = place / "vmpool-hostile"
            file.touch()
            file.unlink()
            return
    raise PermissionError


def fork_on(at: dict[str, Any]) -> None:
    """Have as many processes as there can be, for a moment."""
    children = []
    try:
        for _ in range(at["forks"]):
            children.append(child := os.fork())
            if child == 0:
                signal.pause()
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def fill_disk(at: dict[str, Any]) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    os.pwrite(at["handed"], b"x", at["beyond"])


def raise_limits(_: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


ATTEMPTS: tuple[Callable[[dict[str, Any]], None], ...] = (
    read,
    dial_path,
    dial_name,
    dial_loopback,
    read_key,
    see_others,
    see_kernel,
    end_other,
    trace,
    open_memory,
    mount,
    leave_root,
    become_root,
    load_module,
    load_kernel,
    write,
    fill_disk,
    raise_limits,
    fork_on,
)


def main() -> None:
    """Try all of it."""
    through = {}
    for attempt in ATTEMPTS:
        try:
            attempt(json.loads(sys.argv[1]))
        except OSError as err:
            through[attempt.__name__] = err.strerror or type(err).__name__
        except ValueError as err:
            through[attempt.__name__] = str(err)
        else:
            through[attempt.__name__] = ""
    sys.stdout.write(json.dumps(through) + "\n")


if __name__ == "__main__":
    main()
