"""Guest: the same image under a QEMU that is driven by hand, as anybody might without vmpool.

One device list for booting and for loading, the memory private to each process, no isolation. The
agent in the image is asked for the line as vmpool asks it, over virtio-serial.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
from asyncio.subprocess import DEVNULL, PIPE
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qemu.qmp import QMPClient, QMPError

from bench.line import FIRST_OUTPUT, LINE, OUTPUT
from bench.peer import START_TIMEOUT, UnavailableError
from vmpool.agent import connect
from vmpool.engine.qemu.command import kernel_line
from vmpool.errors import EngineError, InfrastructureError
from vmpool.model import (
    AGENT_PORT_NAME,
    MIB,
    Accelerator,
    Code,
    Command,
    Output,
    SerialAddress,
    new_id,
)
from vmpool.tools import QEMU

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from bench.peer import Arena, Clock
    from bench.subject import Subject
    from vmpool.agent import Agent

_BOARD = "q35,sata=off,usb=off,smbus=off,hpet=off,vmport=off"
_CPU = {Accelerator.KVM: "host", Accelerator.TCG: "max,-la57,-erms,-fsrm,-mpx,-pku"}
"""The same plain moves, short page tables and small state as vmpool's guests have in emulation."""

WARM = Code(source=LINE, timeout=START_TIMEOUT)
PROGRAM = Command(argv=("python3", "-c", LINE), timeout=START_TIMEOUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """One running QEMU. Its sockets are in a directory of its own."""

    qmp: QMPClient
    agent: SerialAddress
    process: asyncio.subprocess.Process


def accelerator(subject: Subject) -> Accelerator:
    """Return what runs guests here: the same for everybody."""
    return subject.spec.accelerator


def booting(subject: Subject) -> list[str]:
    """Return the arguments that boot the subject's image."""
    kernel = ("-kernel", str(subject.image.kernel), "-initrd", str(subject.image.initrd))
    return [*kernel, "-append", command_line(subject)]


def command_line(subject: Subject) -> str:
    """Return what the kernel of the subject's image is told, as under vmpool."""
    return kernel_line(subject.spec, subject.image.command_line)


@contextlib.asynccontextmanager
async def running(arena: Arena, *options: str) -> AsyncIterator[Guest]:
    """Start QEMU with the arena's image as its disk; it is killed and reaped in the end.

    Raises:
        UnavailableError: There is no QEMU.
        EngineError: It does not answer.
    """
    program = QEMU.find()
    if program is None:
        raise UnavailableError(f"{QEMU.name} is not installed")
    directory = arena.sockets / new_id()
    directory.mkdir(mode=0o700)
    async with contextlib.AsyncExitStack() as undo:
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        listener = undo.enter_context(_listening(directory / "qmp"))
        argv = _argv(arena.subject, listener.fileno(), directory / "agent")
        process = await asyncio.create_subprocess_exec(
            program,
            *argv,
            *options,
            pass_fds=[listener.fileno()],
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
        )
        undo.push_async_callback(_ended, process)
        qmp = await _connected(directory / "qmp", process)
        undo.push_async_callback(_disconnected, qmp)
        yield Guest(qmp=qmp, agent=SerialAddress(path=directory / "agent"), process=process)


def _listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    listener.listen(1)
    return listener


def _argv(subject: Subject, qmp: int, agent: Path) -> list[str]:
    spec = subject.spec
    return [
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-accel", accelerator(subject).value, "-cpu", _CPU[accelerator(subject)]),
        *("-machine", _BOARD, "-smp", str(spec.vcpus), "-m", f"{spec.memory_bytes // MIB}M"),
        *("-chardev", f"socket,id=qmp,fd={qmp},server=on,wait=off"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-blockdev", f"driver=file,node-name=file,filename={spec.root},read-only=on"),
        *("-blockdev", "driver=raw,node-name=root,file=file,read-only=on"),
        *("-device", "virtio-blk-pci,drive=root,addr=2"),
        *("-chardev", f"socket,id=agent,path={agent},server=on,wait=off"),
        *("-device", "virtio-serial-pci,max_ports=2,addr=4"),
        *("-device", f"virtserialport,chardev=agent,name={AGENT_PORT_NAME}"),
        *("-serial", "null"),
    ]


async def _connected(path: Path, process: asyncio.subprocess.Process) -> QMPClient:
    qmp = QMPClient("bench")
    qmp.logger.disabled = True  # to the library every QEMU that is killed is an error
    try:
        async with asyncio.timeout(START_TIMEOUT):
            await qmp.connect(str(path))
    except (TimeoutError, QMPError) as err:
        process.kill()
        assert process.stderr is not None
        said = (await process.stderr.read(4096)).decode(errors="replace").strip()
        raise EngineError(f"QEMU does not answer: {said}") from err
    return qmp


async def _disconnected(qmp: QMPClient) -> None:
    with contextlib.suppress(QMPError, EOFError, OSError):
        await qmp.disconnect()


async def _ended(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.communicate()


async def first_output(
    address: SerialAddress, key: bytes, clock: Clock, what: Code | Command = WARM
) -> None:
    """Wait for the agent of a guest and have it run the line.

    Args:
        key: That the agent obeys, or the first that it is shown.
        what: The line, in the interpreter that is warmed in the guest, or as a program.

    Raises:
        GuestError: It does not answer in time.
        InfrastructureError: The output is another.
    """
    async with await connect(address, key=key, timeout=START_TIMEOUT) as agent:
        clock.reached("agent")
        await print_line(agent, clock, what)


async def print_line(agent: Agent, clock: Clock, what: Code | Command = WARM) -> None:
    """Run the line in a guest, and note when its output came.

    Raises:
        InfrastructureError: The output is another.
    """
    said = b""
    async with agent.execute(what) as execution:
        async for event in execution:
            if isinstance(event, Output):
                said += event.data
                if said == OUTPUT:
                    clock.reached(FIRST_OUTPUT)
    if said != OUTPUT:
        raise InfrastructureError(f"the guest printed {said!r}")
