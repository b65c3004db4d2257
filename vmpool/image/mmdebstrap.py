"""Mmdebstrap: one run of the program, what it does in words for who waits, and why it failed.

It ends with all that it started, however the run ends. It does not know what is built.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import tempfile
from collections import deque
from typing import TYPE_CHECKING

from vmpool.cancellation import uninterrupted
from vmpool.errors import DiskFullError, HostError, ImageError
from vmpool.image.furnish import EPOCH
from vmpool.image.work import Step, disk_full

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Callable
    from pathlib import Path

log = logging.getLogger(__name__)

TERMINATE_TIMEOUT = 15.0
"""Seconds that a run may take to unmount and clean up when it is no longer wanted."""

_KILL_TIMEOUT = 15.0
_LOG_LINES = 60
_LINE_BYTES = 500
_CHUNK_BYTES = 64 * 1024

_PASSED_ON = (
    *("HOME", "LOGNAME", "PATH", "TMPDIR", "USER"),
    *("all_proxy", "ftp_proxy", "http_proxy", "https_proxy", "no_proxy"),
)
"""What a run has of our environment: the rest could change the image, or is secret."""

_SAME_EACH_TIME = {
    "SOURCE_DATE_EPOCH": str(EPOCH),
    "LC_ALL": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    # Else a program that is run while packages are installed leaves compiled modules of its own,
    # and which ones they are depends on the order of things.
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""Dates and orders that would otherwise differ from build to build."""

_STEPS = {
    "running apt-get update": "reading the package lists",
    "downloading packages with apt": "downloading packages",
    "extracting archives": "unpacking packages",
    "installing essential packages": "installing packages",
    "installing remaining packages": "installing packages",
    "running --customize-hook": "setting up",
    "creating tarball": "writing the archive",
}
"""What mmdebstrap says that it does → what it is to who waits. The rest is of no interest."""

_FULL = re.compile(r"No space left on device|Disk quota exceeded|don't have enough free space")
_CONFINED = re.compile(r"unable to pick chroot mode")
_OFFLINE = re.compile(
    r"Temporary failure resolving|Could not resolve|Could not connect|Failed to fetch"
    r"|Connection timed out|Network is unreachable|does not have a Release file"
)
_UNKNOWN = re.compile(r"Unable to locate package (\S+)|Package '?(\S+?)'? has no installation")


async def run(argv: list[str], *, at: Path, progress: Callable[[Step], None]) -> None:
    """Run `argv` to its end; if it fails or is cancelled, nothing that it started is left.

    Args:
        argv: mmdebstrap and its arguments.
        at: Its working directory, where it may leave files.
        progress: Told of a few steps.

    Raises:
        HostError: `image_build_unprivileged`: this account may not make a user namespace.
        ImageError: `image_mirror_unreachable`, `image_package_unknown` or `image_build_failed`.
        DiskFullError: The disk is full.
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=at,
        env=_environment(at),
        start_new_session=True,
    )
    assert process.stdout is not None
    words = _Words(progress)
    try:
        while chunk := await process.stdout.read(_CHUNK_BYTES):
            words.add(chunk)
        status = await process.wait()
    except BaseException:
        await uninterrupted(_end(process))
        raise
    if status != 0:
        raise _failure(words.text(), at)


class _Words:
    """What a run says: the last lines of it, and the steps that its lines tell of."""

    def __init__(self, progress: Callable[[Step], None]) -> None:
        self._progress = progress
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)
        self._rest = b""
        self._step = ""

    def add(self, chunk: bytes) -> None:
        *lines, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest[:_LINE_BYTES]
        for line in lines:
            self._hear(line[:_LINE_BYTES].decode(errors="replace"))

    def text(self) -> str:
        return "\n".join([*self._lines, self._rest.decode(errors="replace")]).strip()

    def _hear(self, line: str) -> None:
        self._lines.append(line)
        said = line.removeprefix("I: ")
        step = next((step for start, step in _STEPS.items() if said.startswith(start)), "")
        if step and step != self._step:
            self._step = step
            self._progress(Step(text=step))


def _environment(at: Path) -> dict[str, str]:
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= _SAME_EACH_TIME
    if os.geteuid() == 0:
        # So that what a killed build leaves is in the directory that is swept. Without root the
        # ids that mmdebstrap maps could not enter it.
        environment["TMPDIR"] = str(at)
    return environment


async def _end(process: Process) -> None:
    """End the process and all that it started; it unmounts and cleans up on SIGTERM."""
    await _signal_group(process, signal.SIGTERM, TERMINATE_TIMEOUT)
    # Also when the process has ended: a descendant may have ignored what it was told.
    if not await _signal_group(process, signal.SIGKILL, _KILL_TIMEOUT):
        log.error("mmdebstrap pid=%s: something of it did not end on SIGKILL", process.pid)


async def _signal_group(process: Process, number: signal.Signals, timeout: float) -> bool:
    """Send a signal to the process and its descendants; return whether all ended in time.

    They hold its log: it is at its end when the last of them is.
    """
    assert process.stdout is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    try:
        async with asyncio.timeout(timeout):
            while await process.stdout.read(_CHUNK_BYTES):
                pass
            await process.wait()
    except TimeoutError:
        return False
    return True


def _disks_full(at: Path) -> DiskFullError:
    """Return the error for a full disk where root file systems are not unpacked in `at`."""
    return DiskFullError(
        f"no space left for {at} or in {tempfile.gettempdir()}",
        remedy="free some space there, or set TMPDIR to a directory that has 2 GiB free",
    )


def _failure(words: str, at: Path) -> Exception:
    tail = "\n".join(words.splitlines()[-12:])
    if _FULL.search(words):
        return disk_full(at) if os.geteuid() == 0 else _disks_full(at)
    if unknown := _UNKNOWN.search(words):
        name = unknown[1] or unknown[2]
        return ImageError(f"Debian has no package {name!r}", code="image_package_unknown")
    if _OFFLINE.search(words):
        return ImageError(
            f"the Debian mirror cannot be reached:\n{tail}",
            code="image_mirror_unreachable",
            remedy="check the network, or name another mirror in the recipe",
        )
    if _CONFINED.search(words):
        return HostError(
            "building images without root needs user namespaces, and the kernel refuses them",
            code="image_build_unprivileged",
            remedy="build as root, or run as root: sysctl user.max_user_namespaces=16384 "
            "kernel.unprivileged_userns_clone=1",
        )
    return ImageError(f"mmdebstrap failed:\n{tail}", code="image_build_failed")
