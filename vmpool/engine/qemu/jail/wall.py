"""Wall: one of the things that stand between a QEMU and the host."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Wall(StrEnum):
    """What stands between a QEMU and the host."""

    ACCOUNT = "account"
    """A user id of its own, and no rights."""
    NAMESPACES = "namespaces"
    """No network, and no processes, names or queues of others."""
    ROOT = "root"
    """A root directory with what it needs to run and nothing else, which cannot be written."""
    LANDLOCK = "landlock"
    """The same once more, by rules of the kernel that hold whatever its account may."""
    SECCOMP = "seccomp"
    """No system calls that it has no use for."""
    CGROUP = "cgroup"
    """No more memory, processes and processor time than its machine should take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lack:
    """A wall that this host cannot have, or this process not make."""

    wall: Wall
    why: str
    remedy: str = ""
