"""Peer: the image's guest, warm, by libvirt's save and restore."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape, quoteattr

from bench.guest import accelerator, command_line, first_output
from bench.peer import START_TIMEOUT, Clock, Peer, UnavailableError
from vmpool.agent import new_key
from vmpool.errors import EngineError, VmpoolError
from vmpool.model import AGENT_PORT_NAME, MIB, Accelerator, SerialAddress
from vmpool.tools import QEMU

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.peer import Arena, Phases, Start
    from bench.subject import Subject

_PYTHONS = (sys.executable, "/usr/bin/python3")
_PROGRAM = Path(__file__).parent.parent / "libvirt_program.py"
_DRIVER = "*/libvirt/connection-driver/libvirt_driver_qemu.so"
_END_TIMEOUT = 15.0


class Libvirt:
    """The program that drives libvirt, and its answers."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def do(self, word: str) -> None:
        """Have it do something, and return when that is done.

        Raises:
            EngineError: It failed, or did not end in time.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
        await self.answered()

    async def answered(self) -> None:
        """Return when it says that it has done what it was to do.

        Raises:
            EngineError: It says that it failed, or nothing in time.
        """
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(START_TIMEOUT):
                line = await self._process.stdout.readline()
        except TimeoutError as err:
            raise EngineError("libvirt does not answer") from err
        error = json.loads(line)["error"] if line.strip() not in {b"{}", b""} else ""
        if error or not line:
            raise EngineError(f"libvirt failed: {error or 'it ended'}")


@contextlib.asynccontextmanager
async def _open(arena: Arena) -> AsyncIterator[Start]:
    python = await _python()
    xml, saved = arena.directory / "domain.xml", arena.directory / "domain.save"
    agent = SerialAddress(path=arena.sockets / "libvirt-agent")
    await asyncio.to_thread(xml.write_text, _domain(arena.subject, agent.path))
    key = new_key()
    async with _running(python, xml, saved) as libvirt:
        try:
            await libvirt.do("start")
            await first_output(agent, key, Clock())
            await libvirt.do("save")
        except VmpoolError as err:
            raise UnavailableError(err.message) from err

        async def start() -> Phases:
            clock = Clock()
            await libvirt.do("restore")
            try:
                clock.reached("load")
                await first_output(agent, key, clock)
            finally:
                await libvirt.do("destroy")
            return clock.phases

        yield start


async def _python() -> str:
    """Return a Python that can import libvirt."""
    if not await asyncio.to_thread(lambda: any(Path("/usr/lib").glob(_DRIVER))):
        raise UnavailableError("libvirt's QEMU driver is not installed")
    for python in _PYTHONS:
        if shutil.which(python) is None:
            continue
        process = await asyncio.create_subprocess_exec(
            python, "-c", "import libvirt", stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL
        )
        if await process.wait() == 0:
            return python
    raise UnavailableError("no Python here can import libvirt (Debian: python3-libvirt)")


@contextlib.asynccontextmanager
async def _running(python: str, xml: Path, saved: Path) -> AsyncIterator[Libvirt]:
    if os.geteuid() != 0:
        raise UnavailableError("libvirt's embedded driver is tried as root only")
    root = tempfile.mkdtemp(prefix="vmpool-")  # short: libvirt's sockets are in it
    process = await asyncio.create_subprocess_exec(
        python,
        _PROGRAM,
        *(root, str(xml), str(saved)),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
    )
    try:
        libvirt = Libvirt(process)
        try:
            await libvirt.answered()
        except EngineError as err:
            raise UnavailableError(err.message) from err
        yield libvirt
    finally:
        await _ended(process)
        shutil.rmtree(root, ignore_errors=True)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Let the program end its domain and itself; end it if it does not."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(_END_TIMEOUT):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _domain(subject: Subject, agent: Path) -> str:
    """Return the machine that vmpool would make of the image, in libvirt's words."""
    spec, image = subject.spec, subject.image
    kvm = accelerator(subject) is Accelerator.KVM
    cpu = (
        "<cpu mode='host-passthrough'/>"
        if kvm
        else "<cpu mode='maximum'><feature policy='disable' name='la57'/>"
        "<feature policy='disable' name='erms'/><feature policy='disable' name='fsrm'/></cpu>"
    )
    return f"""\
<domain type='{"kvm" if kvm else "qemu"}'>
  <name>bench</name>
  <memory unit='MiB'>{spec.memory_bytes // MIB}</memory>
  <vcpu>{spec.vcpus}</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{escape(str(image.kernel))}</kernel>
    <initrd>{escape(str(image.initrd))}</initrd>
    <cmdline>{escape(command_line(subject))}</cmdline>
  </os>
  <features><acpi/></features>
  {cpu}
  <on_reboot>destroy</on_reboot>
  <devices>
    <emulator>{escape(str(QEMU.find()))}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file={quoteattr(str(spec.root.resolve()))}/>
      <target dev='vda' bus='virtio'/>
      <readonly/>
    </disk>
    <channel type='unix'>
      <source mode='bind' path={quoteattr(str(agent))}/>
      <target type='virtio' name='{AGENT_PORT_NAME}'/>
    </channel>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
</domain>
"""


PEER = Peer(
    name="libvirt, restore",
    summary="a warm guest of the same image, saved by virDomainSave, restored by virDomainRestore"
    " with libvirt's embedded QEMU driver: no identity of its own",
    open=_open,
)
