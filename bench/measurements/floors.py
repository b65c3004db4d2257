"""Floors: what this machine allows, beside which our own numbers are to be read.

None of vmpool is in them: the kernel, QEMU and the HTTP library, each doing the least that ours
needs of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import mmap
import os
import socket
import time
from asyncio.subprocess import DEVNULL
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web
from qemu.qmp import QMPClient, QMPError

from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from vmpool.errors import EngineError, InfrastructureError
from vmpool.model import new_id
from vmpool.tools import QEMU

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from bench.subject import Subject

HTTP = "HTTP round trip"
HYPERVISOR = "QEMU to QMP, no machine"
QMP = "QMP round trip"

ROUND_TRIPS = 10
PAGES = 1024
"""Written one by one; the rest of a fault's price is lost in the loop's."""

_CREATE_VM = 0xAE01  # linux/kvm.h: KVM_CREATE_VM
_QMP_TIMEOUT = 20.0


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Take each floor once a round."""
    memory = subject.template.snapshot.memory
    async with _empty_server() as url, aiohttp.ClientSession(url) as session:
        await _http(session)
        for turn in pace.turns():
            await _hypervisor(subject.stand.clones, findings)
            for _ in range(ROUND_TRIPS):
                findings.series(HTTP).add(await _http(session))
            mapped, faults = await asyncio.to_thread(_mapping, memory)
            findings.series("private mapping of the memory file").add(mapped)
            findings.series("copy-on-write fault", unit="µs").add(faults)
            _machine(findings, turn)


async def _hypervisor(directory: Path, findings: Findings) -> None:
    """Start QEMU with nothing to run, until it answers; then ask it the least that there is."""
    path = directory / new_id()
    program = QEMU.find()
    if program is None:
        raise EngineError(f"{QEMU.name} is not installed")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)
        began = time.perf_counter_ns()
        process = await asyncio.create_subprocess_exec(
            program,
            *("-nodefaults", "-no-user-config", "-display", "none", "-machine", "none", "-S"),
            *("-chardev", f"socket,id=qmp,fd={listener.fileno()},server=on,wait=off"),
            *("-mon", "chardev=qmp,mode=control"),
            pass_fds=[listener.fileno()],
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=DEVNULL,
        )
    qmp = QMPClient("floor")
    qmp.logger.disabled = True
    try:
        async with asyncio.timeout(_QMP_TIMEOUT):
            await qmp.connect(str(path))
            findings.series(HYPERVISOR).add((time.perf_counter_ns() - began) / 1e6)
            for _ in range(ROUND_TRIPS):
                began = time.perf_counter_ns()
                await qmp.execute("query-status")
                findings.series(QMP).add((time.perf_counter_ns() - began) / 1e6)
            await qmp.disconnect()
    except (TimeoutError, QMPError) as err:
        raise EngineError(f"QEMU does not answer: {err!r}") from err
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        path.unlink(missing_ok=True)


async def _http(session: aiohttp.ClientSession) -> float:
    began = time.perf_counter_ns()
    try:
        async with session.post("/", json={}) as response:
            await response.read()
    except aiohttp.ClientError as err:
        raise InfrastructureError(f"the empty server does not answer: {err!r}") from err
    return (time.perf_counter_ns() - began) / 1e6


@contextlib.asynccontextmanager
async def _empty_server() -> AsyncIterator[str]:
    """Serve requests that are answered with nothing, by the library that vmpool serves with."""

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response()

    application = web.Application()
    application.router.add_post("/", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def _mapping(path: Path) -> tuple[float, float]:
    """Map a file privately, and write to some of its pages, first the mapping's price in ms."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        began = time.perf_counter_ns()
        mapping = mmap.mmap(
            descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
        )
        mapped = time.perf_counter_ns() - began
        pages = min(PAGES, size // mmap.PAGESIZE)
        began = time.perf_counter_ns()
        for at in range(0, pages * mmap.PAGESIZE, mmap.PAGESIZE):
            mapping[at] = 1
        written = time.perf_counter_ns() - began
        mapping.close()
    finally:
        os.close(descriptor)
    return mapped / 1e6, written / 1e3 / pages


def _machine(findings: Findings, turn: int) -> None:
    """Have the kernel make a virtual machine of no processor and no memory."""
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as err:
        if not turn:
            findings.remark(f"KVM_CREATE_VM: skipped: cannot open /dev/kvm: {err.strerror}")
        return
    try:
        began = time.perf_counter_ns()
        machine = fcntl.ioctl(kvm, _CREATE_VM, 0)
        findings.series("KVM_CREATE_VM").add((time.perf_counter_ns() - began) / 1e6)
        os.close(machine)
    finally:
        os.close(kvm)


MEASUREMENT = Measurement(
    name="floors",
    summary="what the machine allows: the least of QEMU, of the kernel, of HTTP",
    rounds=Rounds(quick=10, full=60),
    weight=1,
    measure=measure,
    chapter=Chapter.MACHINE,
    conditions={"page cache": "warm"},
)
