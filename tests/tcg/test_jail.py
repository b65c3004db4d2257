"""Who has broken out of a guest is in QEMU, and QEMU is in a jail: a real one, of a real server.

The process itself is made to try, so that what stops it is what would stop an attacker: account,
root directory, namespaces, Landlock and filters, all at once. That each of them stops something by
itself is in `tests/unit/test_qemu_jail.py` and `test_qemu_seccomp.py`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from tests import estate
from tests.puppet import Puppet
from tests.serving import Api
from tests.tcg.conftest import UpServer

pytestmark = [
    pytest.mark.tcg,
    pytest.mark.shares_host,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can make every wall"),
]

# asm/unistd_64.h
OPEN, SOCKET, CONNECT, KILL, MKDIR, SYMLINK, CHMOD, FTRUNCATE, TGKILL, PIDFD_OPEN = (
    *(2, 41, 42, 62, 83, 88, 90, 77, 234, 434),
)

NOT_THERE = {-errno.ENOENT, -errno.EACCES}
NOT_WRITTEN = {-errno.EROFS, *NOT_THERE}
NOBODY = {-errno.ESRCH}
NO_SUCH_WAY = {-errno.ENOENT, -errno.ECONNREFUSED, -errno.EPERM, -errno.EACCES}


@pytest_asyncio.fixture
async def machines(server: UpServer, api: Api) -> AsyncIterator[tuple[Path, Path]]:
    """The directories of two sandboxes' machines."""
    clones = server.ground.state / "run/clones"
    async with api.sandbox() as one, api.sandbox() as other:
        yield (
            clones / estate.clone_of(server.ground, one),
            clones / estate.clone_of(server.ground, other),
        )


def pid_of(machine: Path) -> int:
    return int(json.loads((machine / "machine.json").read_text())["pid"])


async def test_a_qemu_finds_no_file_of_the_host(
    server: UpServer, machines: tuple[Path, Path]
) -> None:
    state = server.ground.state
    files = {path for path in state.rglob("*") if not path.is_dir()}
    assert {"vmpool.db", "local-token", "qmp", "agent"} <= {path.name for path in files}
    others = pid_of(machines[1])
    paths = (
        *sorted(files),
        *(snapshot for at in (state / "snapshots").iterdir() for snapshot in at.iterdir()),
        *(Path("/etc") / name for name in ("passwd", "shadow", "hostname")),
        *(Path("/proc") / str(others) / name for name in ("mem", "maps", "cmdline", "root", "ns")),
        *(Path("/proc") / str(os.getpid()) / name for name in ("environ", "fd")),
        *map(Path, ("/proc/kcore", "/proc/sys", "/sys", "/dev/mem", "/dev/kvm", "/run", "/home")),
    )
    with Puppet(pid_of(machines[0])) as qemu:
        found = {path: qemu.call(OPEN, os.fsencode(path), os.O_RDONLY) for path in paths}
    assert set(found.values()) <= NOT_THERE, found


async def test_a_qemu_writes_nowhere(machines: tuple[Path, Path]) -> None:
    places = [b"/", b"/usr/", b"/usr/bin/", b"/usr/share/qemu/", b"/proc/", b"/tmp/", b"/dev/shm/"]
    create = os.O_CREAT | os.O_WRONLY
    own = b"/usr/bin/qemu-system-x86_64"
    with Puppet(pid_of(machines[0])) as qemu:
        tried = {
            **{place + b"x": qemu.call(OPEN, place + b"x", create, 0o600) for place in places},
            b"mkdir": qemu.call(MKDIR, b"/x", 0o700),
            b"symlink": qemu.call(SYMLINK, b"/etc", b"/x"),
            b"program": qemu.call(OPEN, own, os.O_WRONLY),
            # Its template's memory, which all its siblings run from, and root file system.
            b"memory": qemu.call(OPEN, b"/proc/self/fd/5", os.O_RDWR),
            b"root": qemu.call(OPEN, b"/proc/self/fd/6", os.O_RDWR),
            b"mode": qemu.call(CHMOD, b"/proc/self/fd/5", 0o444),
        }
        # To what it has: where that is let through, other tests still have the memory.
        size_bytes = Path(f"/proc/{pid_of(machines[0])}/fd/5").stat().st_size
        shortened = qemu.call(FTRUNCATE, 5, size_bytes)
    assert set(tried.values()) <= {*NOT_WRITTEN, -errno.EPERM}, tried
    assert shortened in {-errno.EINVAL, -errno.EBADF}  # it is not open to be written


async def test_a_qemu_reaches_no_process_but_its_own(machines: tuple[Path, Path]) -> None:
    other = pid_of(machines[1])
    with Puppet(pid_of(machines[0])) as qemu:
        tried = {
            (call, pid): qemu.call(call, pid, 0)
            for call in (KILL, PIDFD_OPEN)
            for pid in (other, os.getpid())
        }
        tried[TGKILL, other] = qemu.call(TGKILL, other, other, 0)
    assert set(tried.values()) == NOBODY, tried


def address(family: int, rest: bytes) -> bytes:
    return struct.pack("=H", family) + rest


async def test_a_qemu_reaches_no_socket_of_the_host(
    server: UpServer, machines: tuple[Path, Path]
) -> None:
    port = urlsplit(server.url).port
    assert port is not None
    with contextlib.ExitStack() as held, Puppet(pid_of(machines[0])) as qemu:
        listener = held.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(b"\0vmpool-test-jail")
        listener.listen()
        own = qemu.call(SOCKET, socket.AF_UNIX, socket.SOCK_STREAM, 0)
        assert own > 0
        by_path = [
            address(socket.AF_UNIX, os.fsencode(machines[number] / name))
            for number in (0, 1)
            for name in ("qmp", "agent")
        ]
        by_name = address(socket.AF_UNIX, b"\0vmpool-test-jail")
        tried = [qemu.call(CONNECT, own, at, len(at)) for at in (*by_path, by_name)]
        network = qemu.call(SOCKET, socket.AF_INET, socket.SOCK_STREAM, 0)
    assert set(tried) <= NO_SUCH_WAY, tried
    assert network == -errno.EPERM


async def test_a_sandbox_goes_on_after_its_qemu_tried_in_vain(
    api: Api, machines: tuple[Path, Path]
) -> None:
    for machine in machines:
        with Puppet(pid_of(machine)) as qemu:
            assert qemu.call(OPEN, b"/etc/passwd", os.O_RDONLY) in NOT_THERE
    assert (await api.run(code="print(6 * 7)"))["stdout"] == "42\n"


def test_two_machines_have_nothing_in_common(machines: tuple[Path, Path]) -> None:
    kinds = ("net", "ipc", "uts", "pid", "mnt")
    mine, theirs, ours = (
        {kind: Path(f"/proc/{pid}/ns/{kind}").readlink() for kind in kinds}
        for pid in (*map(pid_of, machines), os.getpid())
    )
    for kind in kinds:
        assert len({mine[kind], theirs[kind], ours[kind]}) == 3, kind
    owners = {Path(f"/proc/{pid_of(machine)}").stat().st_uid for machine in machines}
    assert len(owners) == 2
    assert 0 not in owners
