"""Confinement: which walls stand between a hypervisor and this host, and why not the others.

From what was found out to findings; reads nothing itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmpool.doctor.finding import Finding, State
from vmpool.engine.qemu.jail.wall import Wall

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmpool.engine.qemu.jail.wall import Lack

_PURPOSES = {
    Wall.ACCOUNT: "a guest that breaks out of QEMU has no rights, nor those of another guest's",
    Wall.NAMESPACES: "it finds no network, and no process but itself",
    Wall.ROOT: "it sees no file of the host but those that QEMU needs, and can write none",
    Wall.LANDLOCK: "the same, should it get around its root directory",
    Wall.SECCOMP: "it asks the kernel for nothing that QEMU has no use for",
    Wall.CGROUP: "it takes no more memory, processes and processor time than its machine should",
}
_DETAILS = {
    Wall.ACCOUNT: "a user id of its own for each",
    Wall.NAMESPACES: "network, processes, names and queues of its own for each",
    Wall.ROOT: "a root directory with what QEMU needs and nothing else",
    Wall.LANDLOCK: "rules for files, sockets and signals",
    Wall.SECCOMP: "a filter of ours before QEMU's own",
    Wall.CGROUP: "memory, processes and processor time are limited",
}


def walls(there: Iterable[Wall], lacking: Iterable[Lack]) -> tuple[Finding, ...]:
    """Judge all walls, in their order."""
    reasons = {lack.wall: lack for lack in lacking}
    standing = set(there)
    return tuple(
        _standing(wall) if wall in standing else _lacking(reasons[wall])
        for wall in Wall
        if wall in standing or wall in reasons
    )


def impossible(why: str, remedy: str) -> tuple[Finding, ...]:
    """Judge a host on which QEMU cannot be started at all: it will not run as root."""
    return (
        Finding(
            name=_name(Wall.ACCOUNT),
            purpose="an account without rights, for QEMU to run as",
            state=State.MISSING,
            detail=why,
            remedy=remedy,
        ),
    )


def _standing(wall: Wall) -> Finding:
    return Finding(name=_name(wall), purpose=_PURPOSES[wall], state=State.OK, detail=_DETAILS[wall])


def _lacking(lack: Lack) -> Finding:
    return Finding(
        name=_name(lack.wall),
        purpose=_PURPOSES[lack.wall],
        state=State.DEGRADED,
        detail=f"off: {lack.why}",
        remedy=lack.remedy,
    )


def _name(wall: Wall) -> str:
    return f"isolation: {wall.value}"
