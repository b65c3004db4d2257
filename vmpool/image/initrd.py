"""Initrd: the guest's first root, which mounts the real one and starts the agent as process 1.

A cpio archive of BusyBox, kernel modules and a script. It is not compressed: an emulated guest
unpacks slower than its firmware copies, and nobody's bytes depend on a compressor's release.
"""

from __future__ import annotations

import stat
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PYTHON_OPTION = "vmpool.python"
"""The kernel option that tells the script which Python runs the agent."""

_DIRECTORIES = ("bin", "dev", "lower", "modules", "proc", "root", "sys", "upper")


def script() -> bytes:
    """Return the script that the kernel starts."""
    return (resources.files("vmpool.image") / "init.sh").read_bytes()


def pack(busybox: bytes, modules: Mapping[str, bytes]) -> bytes:
    """Return an initrd.

    Args:
        busybox: A static BusyBox.
        modules: Kernel modules in the order in which they are loaded, by name.
    """
    order = "".join(f"{name}\n" for name in modules).encode()
    executable = stat.S_IFREG | 0o755
    entries = [
        *((name, stat.S_IFDIR | 0o755, b"") for name in _DIRECTORIES),
        ("bin/busybox", executable, busybox),
        ("init", executable, script()),
        ("modules/order", stat.S_IFREG | 0o644, order),
        *((f"modules/{name}.ko", stat.S_IFREG | 0o644, modules[name]) for name in sorted(modules)),
        ("TRAILER!!!", 0, b""),
    ]
    return b"".join(_entry(number, *entry) for number, entry in enumerate(entries, start=1))


def _entry(number: int, name: str, mode: int, content: bytes) -> bytes:
    """Return one entry in the "newc" format (linux/Documentation/driver-api/early-userspace)."""
    path = name.encode() + b"\0"
    # ino mode uid gid nlink mtime filesize major minor rmajor rminor namesize check
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    head += bytes(-len(head) % 4)
    return head + content + bytes(-len(content) % 4)
