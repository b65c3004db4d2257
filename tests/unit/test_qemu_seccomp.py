"""What a QEMU that was broken into may not ask the kernel for; QEMU itself is made to ask."""

from __future__ import annotations

import errno
import secrets
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.puppet import Killed, Puppet
from tests.tiny_template import attachment
from vmpool.engine.qemu import QemuEngine, command
from vmpool.engine.qemu.handover import Handover
from vmpool.engine.qemu.jail import seccomp
from vmpool.engine.qemu.jail.wall import Wall
from vmpool.model import MIB, Accelerator, MachineSpec, Transport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.engine.qemu.hypervisor import Hypervisor

# asm/unistd_64.h
GETUID, SOCKET, SOCKETPAIR = 102, 41, 53
BY_QEMU: dict[str, tuple[int, *tuple[int | bytes, ...]]] = {
    "fork": (57,),
    "vfork": (58,),
    "clone, a process": (56, 17, 0, 0, 0, 0),
    "execve": (59, b"/usr/bin/qemu-system-x86_64", 0, 0),
    "setuid": (105, 0),
    "setresuid": (117, 0, 0, 0),
    "mount": (165, b"none", b"/not-there", b"tmpfs", 0, 0),
    "unshare, a user namespace": (272, 0x10000000),
    "setns": (308, 3, 0),
    "kexec_load": (246, 0, 0, 0, 0xFFFF),
    "swapon": (167, b"/not-there", 0),
}
"""What QEMU's own filter refuses; by ending it, or the thread, where not by an answer.

Each is made so that it fails with another error where it is let through: a wall that is missing
must not cost the host on which that is found out."""

ENDS = {
    *("acct", "chroot", "mount", "pivot_root", "ptrace", "quotactl"),
    *("setns", "umount2", "unshare"),
}
"""Of what our filter refuses: what QEMU's own may end it for."""

FAMILIES = [socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET, socket.AF_VSOCK]


@pytest.fixture
async def hypervisor() -> AsyncIterator[Hypervisor]:
    """A QEMU that holds no machine."""
    engine = await QemuEngine.detect()
    if not {Wall.ACCOUNT, Wall.SECCOMP} <= engine.isolation.walls:
        pytest.skip("only root can make every wall, and then trace what is behind it")
    run = Path(f"/tmp/vmpool-{secrets.token_hex(4)}")
    run.mkdir(mode=0o700)
    spec = MachineSpec(
        root=Path("/dev/null"),
        memory_bytes=MIB,
        accelerator=Accelerator.TCG,
        transport=Transport.SERIAL,
        qemu_version=engine.version,
    )
    with attachment(run) as at:
        with Handover(spec, at) as handover, engine._jailed(spec, at) as jail:
            argv = command.bare(spec, handover.instance)
            started = await engine._start(argv, handover, jail)
        yield started
        await started.kill()
    engine.close()
    shutil.rmtree(run)


async def test_qemu_goes_on_after_all_that_it_is_refused(hypervisor: Hypervisor) -> None:
    with Puppet(hypervisor.process.pid) as qemu:
        uid = qemu.call(GETUID)
        refused = {
            name: qemu.call(number, 0, 0, 0)
            for name, number in seccomp.REFUSED.items()
            if name not in ENDS
        }
        sockets = {family: qemu.call(SOCKET, family, socket.SOCK_DGRAM, 0) for family in FAMILIES}
        pairs = {
            family: qemu.call(SOCKETPAIR, family, socket.SOCK_DGRAM, 0, bytes(8))
            for family in FAMILIES
        }
        own = qemu.call(SOCKET, socket.AF_UNIX, socket.SOCK_STREAM, 0)
        own_pair = qemu.call(SOCKETPAIR, socket.AF_UNIX, socket.SOCK_STREAM, 0, bytes(8))
    assert uid > 0
    assert own > 0
    assert own_pair == 0
    assert set(refused.values()) == {-errno.EPERM}, refused
    assert set(sockets.values()) == {-errno.EPERM}, sockets
    assert set(pairs.values()) == {-errno.EPERM}, pairs
    assert await hypervisor.execute("query-status")


@pytest.mark.parametrize("name", BY_QEMU)
async def test_what_gives_rights_or_starts_programs_is_refused(
    hypervisor: Hypervisor, name: str
) -> None:
    with Puppet(hypervisor.process.pid) as qemu:
        try:
            answer = qemu.call(*BY_QEMU[name])
        except Killed:
            return
    assert answer == -errno.EPERM
