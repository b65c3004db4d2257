"""Tools: the programs and files of the host that vmpool uses, and whether they are there.

How they come to a host is `packages`' to decide.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Version = tuple[int, int, int]
QEMU_SINCE: Version = (8, 2, 0)
"""The first QEMU with the `file:` migration transport, which snapshots are written through."""

DEBIAN_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"

_SEARCH_PATH = "/usr/sbin:/sbin"  # where mkfs.* lives; an ordinary user's PATH has it not
_VERSION_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A program or data file of the host.

    Attributes:
        name: Program name, or whatever a reader knows it by.
        package: The Debian package that brings it; Ubuntu's has the same name.
        purpose: What vmpool does with it.
        files: Where it is, any one of them, when it is not a program on the PATH.
    """

    name: str
    package: str
    purpose: str
    files: tuple[str, ...] = ()

    def find(self) -> Path | None:
        """Return where it is on this host, `None` if it is missing."""
        if self.files:
            return next((Path(file) for file in self.files if Path(file).is_file()), None)
        found = shutil.which(self.name, path=f"{os.environ.get('PATH', '')}:{_SEARCH_PATH}")
        return None if found is None else Path(found)


QEMU = Tool(
    name="qemu-system-x86_64", package="qemu-system-x86", purpose="runs the virtual machines"
)
TOOLS = (
    QEMU,
    Tool(
        name="seabios",
        package="seabios",
        purpose="firmware of the virtual machines",
        files=("/usr/share/seabios/bios-256k.bin", "/usr/share/qemu/bios-256k.bin"),
    ),
    Tool(name="unshare", package="util-linux", purpose="runs QEMU in namespaces of its own"),
    Tool(name="mmdebstrap", package="mmdebstrap", purpose="builds root file systems of images"),
    Tool(
        name="debian-archive-keyring",
        package="debian-archive-keyring",
        purpose="verifies the packages that images are built of",
        files=(DEBIAN_KEYRING, "/usr/share/keyrings/debian-archive-keyring.pgp"),
    ),
    Tool(name="mkfs.ext4", package="e2fsprogs", purpose="makes scratch disks"),
)
ROOT_TOOLS = (
    Tool(
        name="libnftables",
        package="libnftables1",
        purpose="keeps sandboxes' networks to their rules",
        files=("/usr/lib/x86_64-linux-gnu/libnftables.so.1", "/usr/lib64/libnftables.so.1"),
    ),
)
UNPRIVILEGED_TOOLS = (
    Tool(
        name="newuidmap",
        package="uidmap",
        purpose="gives an account that is not root the user ids of an image's files",
    ),
)
TEST_TOOLS = (
    Tool(name="qemu-img", package="qemu-utils", purpose="judges overlays in tests"),
    Tool(name="fsck.erofs", package="erofs-utils", purpose="judges root file systems in tests"),
    Tool(name="nft", package="nftables", purpose="shows rules of networks in tests"),
    Tool(name="ip", package="iproute2", purpose="makes the internet of tests"),
    Tool(name="curl", package="curl", purpose="runs the command lines that `vmpool up` prints"),
)
BENCH_TOOLS = (
    Tool(name="crun", package="crun", purpose="runs the same line in a container, to compare"),
    Tool(name="bwrap", package="bubblewrap", purpose="runs it in namespaces, to compare"),
    Tool(name="runsc", package="runsc", purpose="runs it under gVisor, to compare"),
    Tool(name="qemu-img", package="qemu-utils", purpose="makes the disk that savevm writes to"),
    Tool(name="fsck.erofs", package="erofs-utils", purpose="writes an image out for containers"),
    Tool(
        name="libvirt's QEMU driver",
        package="libvirt-daemon-driver-qemu",
        purpose="restores the same guest, to compare",
        files=("/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so",),
    ),
    Tool(
        name="libvirt_iohelper",
        package="libvirt-daemon-common",
        purpose="writes what libvirt saves",
        files=("/usr/lib/libvirt/libvirt_iohelper",),
    ),
    Tool(
        name="libvirt for Python",
        package="python3-libvirt",
        purpose="drives libvirt",
        files=("/usr/lib/python3/dist-packages/libvirt.py",),
    ),
)
"""What `make bench` compares with. None of it is needed: what is missing is skipped."""


def needed() -> tuple[Tool, ...]:
    """Return the tools that vmpool uses when this account runs it."""
    return (*TOOLS, *(ROOT_TOOLS if os.geteuid() == 0 else UNPRIVILEGED_TOOLS))


def parse_qemu_version(text: str) -> Version | None:
    """Read the output of `qemu-system-x86_64 --version`; `None` if it holds no version."""
    match = re.search(r"version (\d+)\.(\d+)(?:\.(\d+))?", text)
    return None if match is None else (int(match[1]), int(match[2]), int(match[3] or 0))


async def query_qemu_version() -> Version | None:
    """Ask the QEMU on the PATH for its version; `None` if there is none that answers."""
    path = QEMU.find()
    if path is None:
        return None
    process = await asyncio.create_subprocess_exec(
        path, "--version", stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL
    )
    try:
        async with asyncio.timeout(_VERSION_TIMEOUT):
            output, _ = await process.communicate()
    except TimeoutError:
        return None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return parse_qemu_version(output[:4096].decode(errors="replace"))


async def query_missing(wanted: Sequence[Tool]) -> tuple[Tool, ...]:
    """Return the tools that this host lacks; a QEMU that is too old counts as absent."""
    missing = [tool for tool in wanted if tool.find() is None]
    version = await query_qemu_version()
    if QEMU in wanted and QEMU not in missing and (version is None or version < QEMU_SINCE):
        missing.append(QEMU)
    return tuple(missing)
