"""Clones on KVM: each is reached over vsock under a context id of its own, and is itself."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import time
from typing import Any

import pytest

from tests.kvm.conftest import DEADLINES, Stock
from vmpool.agent import connect, new_key
from vmpool.clone import Clone, claim_directory
from vmpool.errors import GuestError
from vmpool.model import (
    AGENT_VSOCK_PORT,
    Accelerator,
    Attachment,
    Code,
    Command,
    Exited,
    Output,
    Transport,
    VsockAddress,
)
from vmpool_agent import wire

pytestmark = [pytest.mark.kvm, pytest.mark.shares_host]

CLONES = 20

WHO = """
import fcntl, json, os, random, uuid
with open("/dev/vsock", "rb") as vsock:
    cid = int.from_bytes(fcntl.ioctl(vsock, 0x7B9, bytes(4)), "little")  # linux/vm_sockets.h
print(json.dumps({
    "cid": cid,
    "urandom": os.urandom(16).hex(),
    "random": random.getrandbits(128),
    "uuid4": str(uuid.uuid4()),
    "boot_id": open("/proc/sys/kernel/random/boot_id").read().strip(),
    "kernel uuid": open("/proc/sys/kernel/random/uuid").read().strip(),
    "machine_id": open("/etc/machine-id").read().strip(),
    "hostname": os.uname().nodename,
}))
"""
TIME = """
import json, time
began = [time.time(), time.monotonic()]
time.sleep(1)
print(json.dumps([began, [time.time(), time.monotonic()]]))
"""
AGENTS_SOCKETS = """
import ctypes, os, socket
call, agent, count = ctypes.CDLL(None).syscall, os.pidfd_open(1), 0
for descriptor in os.listdir("/proc/1/fd"):
    ours = call(438, agent, int(descriptor), 0)  # pidfd_getfd(2)
    try:
        count += socket.socket(fileno=ours).family == socket.AF_VSOCK
    except OSError:
        pass  # no socket
print(count)
"""


async def output(clone: Clone, what: Code | Command) -> str:
    """Run something to its successful end and return what it wrote to stdout."""
    async with clone.agent.execute(what) as execution:
        events = [event async for event in execution]
    assert events[-1] == Exited(exit_code=0), events
    return b"".join(e.data for e in events if isinstance(e, Output)).decode()


def cid_of(clone: Clone) -> int:
    address = clone.machine.agent_address
    assert isinstance(address, VsockAddress)
    return address.cid


async def test_twenty_clones_live_at_once_and_share_no_identity(stock: Stock) -> None:
    assert stock.base.spec.accelerator is Accelerator.KVM
    assert stock.base.spec.transport is Transport.VSOCK
    seen: dict[str, list[Any]] = {}
    async with stock.clones(CLONES) as clones:
        for clone in clones:
            who = json.loads(await output(clone, Code(source=WHO, user="root")))
            assert who["cid"] == cid_of(clone)
            assert who["hostname"] == clone.receipt.hostname == clone.id
            assert who["machine_id"] == clone.receipt.machine_id
            assert who["boot_id"] == clone.receipt.boot_id
            for source, value in who.items():
                seen.setdefault(source, []).append(value)
    for source, values in seen.items():
        assert len(set(values)) == CLONES, f"{source} repeats between clones"


async def test_a_clones_clocks_are_right_and_run_at_the_hosts_pace(stock: Stock) -> None:
    async with stock.clones() as (clone,):
        source = "/sys/devices/system/clocksource/clocksource0/available_clocksource"
        assert "kvm-clock" in await output(clone, Command(argv=("cat", source)))
        before = time.time()
        began, ended = json.loads(await output(clone, Code(source=TIME)))
        after = time.time()
    assert before - 1 < began[0] < ended[0] < after + 1
    wall, monotonic = (end - begin for begin, end in zip(began, ended, strict=True))
    assert 1 <= monotonic < after - before
    assert abs(wall - monotonic) < 0.5


async def test_a_connection_that_was_open_at_the_snapshot_is_in_no_clone(stock: Stock) -> None:
    async with stock.clones() as (clone,):
        counted = await output(clone, Code(source=AGENTS_SOCKETS, user="root"))
    assert counted == "2\n"  # what it listens on, and what we are connected over


async def test_a_process_of_the_host_without_the_key_is_hung_up_on(stock: Stock) -> None:
    async with stock.clones() as (clone,):
        for key in (new_key(), bytes(wire.KEY_SIZE)):
            assert await asyncio.to_thread(knock, cid_of(clone), key) == b""
        assert await output(clone, Command(argv=("echo", "well"))) == "well\n"


async def test_a_clone_that_somebody_else_claimed_first_does_not_answer_us(stock: Stock) -> None:
    directory = claim_directory(stock.run)
    shell = await stock.engine.prepare(stock.base, Attachment(directory=directory))
    machine = await shell.load(stock.base)
    try:
        await machine.resume()
        address = machine.agent_address
        assert isinstance(address, VsockAddress)
        answer, theirs = b"", new_key()
        async with asyncio.timeout(DEADLINES.hello):
            while not answer:  # until the guest has found that it was restored
                answer = await asyncio.to_thread(knock, address.cid, theirs)
        with pytest.raises(GuestError) as raised:
            await connect(address, key=new_key(), timeout=3)
    finally:
        await machine.kill()
        shutil.rmtree(directory)
    assert raised.value.error_code == "guest_unreachable"


def knock(cid: int, key: bytes) -> bytes:
    """Present a key at an agent; return its answer, empty when it hung up."""
    stranger = wire.Connection(wire.Role.HOST)
    stranger.synchronise(bytes(wire.NONCE_SIZE), key)
    with (
        contextlib.suppress(ConnectionResetError, TimeoutError),
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as connection,
    ):
        connection.settimeout(10)
        connection.connect((cid, AGENT_VSOCK_PORT))
        connection.sendall(stranger.take())
        return connection.recv(4096)
    return b""


async def test_output_streams_while_the_program_runs(stock: Stock) -> None:
    line = "for i in 1 2 3; do echo $i; sleep 0.5; done"
    pieces = 0
    async with (
        stock.clones() as (clone,),
        clone.agent.execute(Command(argv=("/bin/sh", "-c", line))) as execution,
    ):
        async for event in execution:
            if isinstance(event, Output):
                pieces += 1
    assert pieces > 1  # they came while it ran


async def test_files_go_in_and_come_out_unharmed(stock: Stock) -> None:
    content = bytes(range(256)) * 4096

    async def pieces() -> Any:
        for start in range(0, len(content), 100_000):
            yield content[start : start + 100_000]

    async with stock.clones() as (clone,):
        info = await clone.agent.write_file("deep/down", pieces(), user="user")
        assert info.size_bytes == len(content)
        back = [piece async for piece in clone.agent.read_file(info.path, user="user")]
    assert b"".join(back) == content
