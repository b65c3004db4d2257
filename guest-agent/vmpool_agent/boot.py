"""Boot: what the first process of a guest owes to it before anything else can run."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from vmpool_agent import ethernet
from vmpool_agent.reactor import report
from vmpool_agent.system import mount

_MOUNTS = (
    ("proc", "/proc", "proc", ""),
    ("sysfs", "/sys", "sysfs", ""),
    ("devtmpfs", "/dev", "devtmpfs", "mode=0755"),
    ("devpts", "/dev/pts", "devpts", "gid=5,mode=0620,ptmxmode=0666"),
    ("tmpfs", "/dev/shm", "tmpfs", "mode=1777"),  # noqa: S108
    ("tmpfs", "/run", "tmpfs", "mode=0755"),
    ("tmpfs", "/tmp", "tmpfs", "mode=1777"),  # noqa: S108
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", ""),
)
_MS_NOSUID = 2  # sys/mount.h
_MS_NODEV = 4
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
}


def boot() -> None:
    """Mount what is not mounted, bring up the network; what fails is reported and passed over."""
    os.umask(0o022)
    os.environ.clear()
    for source, target, kind, options in _MOUNTS:
        try:
            _mount_once(source, target, kind, options)
        except OSError:
            report(f"mounting {target} failed")
    for name, target in _DEVICE_LINKS.items():
        with contextlib.suppress(FileExistsError):
            Path("/dev", name).symlink_to(target)
    for step in (ethernet.raise_loopback, ethernet.settle):
        try:
            step()
        except OSError:
            report(f"{step.__name__} failed")


def say(line: str) -> None:
    """Write a line to the console, where there is one."""
    with contextlib.suppress(OSError):
        fd = os.open("/dev/console", os.O_WRONLY | os.O_NOCTTY | os.O_CLOEXEC)
        try:
            os.write(fd, line.encode() + b"\n")
        finally:
            os.close(fd)


def _mount_once(source: str, target: str, kind: str, options: str) -> None:
    Path(target).mkdir(parents=True, exist_ok=True)
    if not os.path.ismount(target):
        flags = _MS_NOSUID if kind == "devtmpfs" or target == "/dev/pts" else _MS_NOSUID | _MS_NODEV
        mount(source, target, kind, flags, options)
