"""Judgement: from a plain value that was read off the host to a finding. Reads nothing itself."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from vmpool.descriptors import NEEDED as DESCRIPTORS_NEEDED
from vmpool.doctor.finding import Finding, State
from vmpool.model import GIB
from vmpool.tools import QEMU, QEMU_SINCE

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.tools import Tool, Version

INSTALL_COMMAND = "vmpool doctor --install"
"""Installs every tool that is missing, as root; says what to do where it cannot."""
PYTHON_SINCE = (3, 11)
DISK_NEEDED_BYTES = 2 * GIB
"""An image with its template: tarball, root file system and memory file at the same time."""
DISK_ROOMY_BYTES = 10 * GIB
MEMORY_NEEDED_BYTES = 1 * GIB
MEMORY_ROOMY_BYTES = 4 * GIB
DESCRIPTORS_ROOMY = 4096
"""Four or five for each of a few hundred clones, and as many client connections."""
SOCKET_PATH_BYTES = 107  # linux/un.h: UNIX_PATH_MAX less the closing zero
LONGEST_SOCKET = "/clones/" + "x" * 20 + "/agent.sock"


def platform(system: str, machine: str) -> Finding:
    """Judge `uname -s` and `uname -m`."""
    fits = system == "Linux" and machine == "x86_64"
    return Finding(
        name="platform",
        purpose="hypervisor and guests are Linux on x86-64",
        state=State.OK if fits else State.MISSING,
        detail=f"{system} {machine}",
        remedy="" if fits else "use an x86-64 Linux host",
    )


def python(version: tuple[int, ...]) -> Finding:
    """Judge the interpreter that runs this."""
    fits = version[:2] >= PYTHON_SINCE
    return Finding(
        name="python",
        purpose="runs vmpool itself",
        state=State.OK if fits else State.MISSING,
        detail=".".join(map(str, version[:3])),
        remedy="" if fits else "install Python 3.11 or newer",
    )


def qemu(version: Version | None, path: Path | None) -> Finding:
    """Judge the QEMU on the PATH by its version."""
    fits = version is not None and version >= QEMU_SINCE
    text = "not found" if version is None else f"{'.'.join(map(str, version))} at {path}"
    too_old = "" if fits or version is None else ", too old: 8.2 is the oldest that does"
    return Finding(
        name=QEMU.name,
        purpose=QEMU.purpose,
        state=State.OK if fits else State.MISSING,
        detail=text + too_old,
        remedy="" if fits else INSTALL_COMMAND,
    )


def tool(tool: Tool, path: Path | None) -> Finding:
    """Judge a program or file of the host."""
    return Finding(
        name=tool.name,
        purpose=tool.purpose,
        state=State.MISSING if path is None else State.OK,
        detail="not found" if path is None else str(path),
        remedy="" if path is not None else f"{INSTALL_COMMAND}  (Debian package {tool.package})",
    )


def vsock(*, usable: bool) -> Finding:
    """Judge vhost-vsock by whether its device can be opened."""
    return Finding(
        name="vhost-vsock",
        purpose="the quickest way to the agent in a guest; virtio-serial is used without it",
        state=State.OK if usable else State.DEGRADED,
        detail="/dev/vhost-vsock" if usable else "/dev/vhost-vsock cannot be opened",
        remedy="" if usable else "modprobe vhost_vsock",
    )


def pagemap_scan(*, release: str, available: bool) -> Finding:
    """Judge the kernel by whether it lists changed pages in one call."""
    return Finding(
        name="PAGEMAP_SCAN",
        purpose="finds the pages that a clone changed in one call",
        state=State.OK if available else State.DEGRADED,
        detail="available" if available else f"not in Linux {release}",
        remedy="" if available else "boot Linux 6.7 or newer",
    )


def access(*, failure: str = "", remedy: str = "") -> Finding:
    """Judge whether the memory of a hypervisor could be copied; `failure` says why not."""
    return Finding(
        name="guest memory",
        purpose="pauses, checkpoints and forks of sandboxes copy it",
        state=State.DEGRADED if failure else State.OK,
        detail=failure or "can be copied",
        remedy=(remedy or "start vmpool as root") if failure else "",
    )


def disk(state: Path, free_bytes: int) -> Finding:
    """Judge the room in the state directory."""
    verdict = State.OK
    if free_bytes < DISK_ROOMY_BYTES:
        verdict = State.DEGRADED if free_bytes >= DISK_NEEDED_BYTES else State.MISSING
    return Finding(
        name="disk space",
        purpose="images and snapshots; one of each takes up to "
        f"{DISK_NEEDED_BYTES // GIB} GiB while it is built",
        state=verdict,
        detail=f"{free_bytes / GIB:.1f} GiB free for {state}",
        remedy="" if verdict is State.OK else "free space there, or choose another state directory",
    )


def memory(available_bytes: int) -> Finding:
    """Judge the memory that is to be had without swapping."""
    verdict = State.OK
    if available_bytes < MEMORY_ROOMY_BYTES:
        verdict = State.DEGRADED if available_bytes >= MEMORY_NEEDED_BYTES else State.MISSING
    return Finding(
        name="memory",
        purpose="a template's memory and some 45 MB for each clone",
        state=verdict,
        detail=f"{available_bytes / GIB:.1f} GiB available",
        remedy="" if verdict is State.OK else "free memory, or set lower limits for templates",
    )


def descriptors(limit: int) -> Finding:
    """Judge how many open files a server may give itself, below zero when there is no limit."""
    verdict = State.OK
    if 0 <= limit < DESCRIPTORS_ROOMY:
        verdict = State.DEGRADED if limit >= DESCRIPTORS_NEEDED else State.MISSING
    return Finding(
        name="open files",
        purpose="sockets and files of clones and clients",
        state=verdict,
        detail="unlimited" if limit < 0 else f"at most {limit}",
        remedy=""
        if verdict is State.OK
        else f"ulimit -Hn {DESCRIPTORS_ROOMY} as root, or LimitNOFILE= in its unit",
    )


def run_directory(run: Path) -> Finding:
    """Judge whether sockets below `run` have paths that the kernel takes."""
    longest = len(os.fsencode(run)) + len(LONGEST_SOCKET)
    fits = longest <= SOCKET_PATH_BYTES
    room = SOCKET_PATH_BYTES - len(LONGEST_SOCKET)
    return Finding(
        name="run directory",
        purpose=f"sockets of clones; a socket's path has at most {SOCKET_PATH_BYTES} bytes",
        state=State.OK if fits else State.MISSING,
        detail=f"{run}" if fits else f"{run} is {longest - SOCKET_PATH_BYTES} bytes too long",
        remedy="" if fits else f"choose a run directory of at most {room} bytes",
    )
