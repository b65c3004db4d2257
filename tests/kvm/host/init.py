"""Process 1 of the host in a machine: makes it a host, runs the ring, says how it ended, halts.

It stands in the image where the agent of a guest stands, and imports the standard library alone.
Whatever happens, it halts the machine; what becomes of that is decided outside.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

CHECKOUT = "/srv/vmpool"
ARGUMENTS = "/srv/arguments.json"
PORT_NAME = "vmpool.report"
_RING = "/opt/ring/bin/python"
_MOUNTS = (
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("devpts", "/dev/pts"),
    ("tmpfs", "/dev/shm"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
)
_MODULES = (
    # Without nested=0 it offers virtualization to its guests as well, which nobody asked for.
    ("kvm_amd", "nested=0"),
    ("vhost_vsock",),
    ("vhost_net",),
    ("tun",),
)
_RB_POWER_OFF = 0x4321FEDC  # linux/reboot.h


def main() -> None:
    """Run the ring and halt."""
    atexit.register(_halt)  # runs after an exception, too, and after that was printed
    _mount()
    port = _open_port()
    _tell(port, event="up", kernel=os.uname().release)
    _prepare()
    _tell(port, event="halted", code=_run_ring(port))


def _halt() -> None:
    os.sync()
    ctypes.CDLL(None).reboot(ctypes.c_uint(_RB_POWER_OFF))


def _mount() -> None:
    library = ctypes.CDLL(None, use_errno=True)
    for kind, place in _MOUNTS:
        Path(place).mkdir(parents=True, exist_ok=True)
        if library.mount(kind.encode(), place.encode(), kind.encode(), 0, None) != 0:
            sys.stdout.write(f"cannot mount {place}: {os.strerror(ctypes.get_errno())}\n")
    console = os.open("/dev/console", os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(console, descriptor)


def _open_port() -> int:
    """Return a descriptor of the port that the machine's owner reads."""
    for place in Path("/sys/class/virtio-ports").iterdir():
        if (place / "name").read_text().strip() == PORT_NAME:
            return os.open(f"/dev/{place.name}", os.O_WRONLY)
    raise FileNotFoundError(PORT_NAME)


def _prepare() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=False)
    for module in _MODULES:
        subprocess.run(["modprobe", *module], check=False)


def _run_ring(port: int) -> int:
    """Run the ring to its end, and reap every orphan meanwhile; return its exit code."""
    environment = {
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PATH": "/opt/ring/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONUNBUFFERED": "1",
    }
    argv = [_RING, "-m", "tests.kvm.nested.inside", str(port), *_arguments()]
    ring = subprocess.Popen(argv, cwd=CHECKOUT, env=environment, pass_fds=[port])
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == ring.pid:
            return os.waitstatus_to_exitcode(status)


def _arguments() -> list[str]:
    """Return what pytest was asked for outside."""
    return list(json.loads(Path(ARGUMENTS).read_text()))


def _tell(port: int, **message: object) -> None:
    os.write(port, json.dumps(message).encode() + b"\n")


main()
