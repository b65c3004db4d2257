"""Examination: reads what there is to judge off the host."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import platform
import resource
import shutil
import struct
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool.config import ApiSettings
from vmpool.doctor import confinement, encryption, judgement, network, virtualization
from vmpool.doctor.virtualization import EXTENSIONS, Provider
from vmpool.engine.qemu import QemuEngine, detection, require_access
from vmpool.engine.qemu.probe import Probe, probe_accelerator, probe_transport
from vmpool.errors import EngineError, HostError
from vmpool.model import MIB, Accelerator, Attachment, MachineSpec, Transport
from vmpool.tools import QEMU, needed, query_qemu_version

if TYPE_CHECKING:
    from vmpool.doctor.finding import Finding
    from vmpool.engine.qemu.isolation import Isolation
    from vmpool.model import Processor
    from vmpool.tools import Version

PROBE_TIMEOUT = 1.5
"""Seconds; a host that needs longer for a few instructions runs nothing in time."""

ANSWER_TIMEOUT = 1.0
"""Seconds for QEMU to say what it can emulate; for a process to be started and read, likewise."""

_PAGEMAP_SCAN = 0xC0606610  # linux/fs.h, since 6.7
_PAGEMAP_SCAN_ARGUMENT = struct.Struct("=12Q")  # struct pm_scan_arg, its own size and flags first


async def examine(
    *, state: Path, run: Path, interface: ApiSettings | None = None
) -> tuple[Finding, ...]:
    """Look at everything, in less than two seconds.

    Args:
        interface: How the server is to be reached; the defaults when `None`.
        state: The state directory; need not exist yet.
        run: The run directory; need not exist yet.
    """
    version = await query_qemu_version()
    path = None if version is None else QEMU.find()
    isolated = await asyncio.to_thread(_isolated, path, version)
    host = await asyncio.to_thread(_examine_host, state)
    return (
        judgement.platform(platform.system(), platform.machine()),
        judgement.python(sys.version_info[:3]),
        judgement.qemu(version, path),
        *(judgement.tool(tool, tool.find()) for tool in needed() if tool is not QEMU),
        *(() if path is None else await _examine_virtualization(path, isolated)),
        *_walls(isolated),
        *host,
        await _examine_access(isolated),
        judgement.run_directory(run),
        await asyncio.to_thread(network.examine),
        await asyncio.to_thread(network.examine_connections),
        *await asyncio.to_thread(encryption.examine, interface or ApiSettings()),
    )


def _isolated(qemu: Path | None, version: Version | None) -> Isolation | HostError:
    """Find out how far a hypervisor can be cut off; changes nothing. Blocks."""
    binary = QEMU.name if qemu is None else os.fspath(qemu)
    try:
        found = detection.detect(binary, ".".join(map(str, version or ())))
    except HostError as err:
        return err
    return detection.limitable(found)


def _walls(isolated: Isolation | HostError) -> tuple[Finding, ...]:
    if isinstance(isolated, HostError):
        return confinement.impossible(isolated.message, isolated.remedy)
    return confinement.walls(isolated.walls, isolated.lacks)


def _told(isolated: Isolation | HostError) -> Isolation:
    if isinstance(isolated, HostError):
        raise isolated
    return isolated


async def _examine_virtualization(
    qemu: Path, isolated: Isolation | HostError
) -> tuple[Finding, ...]:
    probe, emulated = await asyncio.gather(_probe(qemu, isolated), _query_emulated(qemu, isolated))
    transport = await asyncio.to_thread(probe_transport)
    return (
        virtualization.acceleration(probe, await asyncio.to_thread(_provider)),
        virtualization.ring(
            probe,
            vsock=transport is Transport.VSOCK,
            emulated=emulated,
            available_bytes=_memory_available_bytes(),
        ),
    )


async def _probe(qemu: Path, isolated: Isolation | HostError) -> Probe:
    """Run a guest of a few instructions."""
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            return await probe_accelerator(str(qemu), _told(isolated))
    except TimeoutError:
        return Probe(accelerator=Accelerator.TCG, reason="a guest did not end in time")
    except (EngineError, HostError) as err:
        return Probe(accelerator=Accelerator.TCG, reason=err.message, remedy=err.remedy)


async def _query_emulated(qemu: Path, isolated: Isolation | HostError) -> Processor | None:
    """Ask QEMU what it can emulate; `None` when it does not say."""
    spec = MachineSpec(
        root=Path(os.devnull),
        memory_bytes=MIB,
        accelerator=Accelerator.TCG,
        transport=Transport.SERIAL,
    )
    with tempfile.TemporaryDirectory(prefix="vmpool-") as directory:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                engine = QemuEngine(binary=str(qemu), version="", isolation=_told(isolated))
                return await engine.processor(spec, Attachment(directory=Path(directory)))
        except (EngineError, HostError, TimeoutError):
            return None


def _provider() -> Provider:
    flags: set[str] = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("flags"):
            flags = set(line.split())
            break
    return Provider(
        extensions=tuple(name for name in EXTENSIONS if name in flags),
        modules=tuple(sorted(path.name for path in Path("/sys/module").glob("kvm_*"))),
    )


def _examine_host(state: Path) -> tuple[Finding, ...]:
    """Look at what the kernel says. Blocks."""
    return (
        judgement.vsock(usable=os.access("/dev/vhost-vsock", os.R_OK | os.W_OK)),
        judgement.pagemap_scan(release=platform.release(), available=_has_pagemap_scan()),
        judgement.disk(state, shutil.disk_usage(_existing(state)).free),
        judgement.memory(_memory_available_bytes()),
        judgement.descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[1]),
    )


async def _examine_access(isolated: Isolation | HostError) -> Finding:
    """Copy a page of a process that is cut off as a QEMU is."""
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            await require_access(_told(isolated))
    except TimeoutError:
        return judgement.access(failure="a process did not start in time", remedy="")
    except (EngineError, HostError) as err:
        return judgement.access(failure=err.message, remedy=err.remedy)
    return judgement.access()


def _has_pagemap_scan() -> bool:
    """Scan the first page of our address space, and ask for nothing."""
    # size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, return
    argument = _PAGEMAP_SCAN_ARGUMENT.pack(
        _PAGEMAP_SCAN_ARGUMENT.size, 0, 0, mmap.PAGESIZE, 0, 0, 0, 0, 0, 0, 0, 0
    )
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        try:
            fcntl.ioctl(pagemap, _PAGEMAP_SCAN, bytearray(argument))
        except OSError:
            return False
    return True


def _memory_available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _existing(path: Path) -> Path:
    """Return the directory itself or its closest ancestor that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
