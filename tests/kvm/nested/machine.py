"""Machine: one run of the host in QEMU's software emulation, from its start to its end.

It decides how QEMU is started and when it has had its time; what the end means is `verdict`'s.
"""

from __future__ import annotations

import asyncio
import os
import socket
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from tests.kvm.nested import message
from tests.kvm.nested.console import Console
from vmpool.tools import QEMU

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmpool.image import Image

PORT_NAME = "vmpool.report"
RING_SECONDS = 1200.0
_CHUNK = 64 * 1024


class Ending(StrEnum):
    """How a run of the machine ended."""

    HALTED = "it halted"
    DIED = "it died before it halted"
    STUCK_AT_BOOT = "it did not begin the ring in time"
    STUCK_IN_RING = "it did not end the ring in time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Seconds that a run may take.

    Attributes:
        boot: From QEMU's start until pytest starts.
        ring: From then until the machine has halted.
    """

    boot: float = 300.0
    ring: float = RING_SECONDS


@dataclass(slots=True, kw_only=True)
class Record:
    """What was heard from one run of the machine, as it is heard.

    Attributes:
        malformed: Lines that were no message.
    """

    up: message.Up | None = None
    lacking: tuple[str, ...] = ()
    began: bool = False
    failed: list[str] = field(default_factory=list)
    report: message.Report | None = None
    halted: message.Halted | None = None
    malformed: int = 0

    def hear(self, told: message.Any) -> None:
        """Take a message in."""
        match told:
            case message.Up():
                self.up = told
            case message.Lacking():
                self.lacking = told.what
            case message.Began():
                self.began = True
            case message.Failed():
                self.failed.append(told.test)
            case message.Report():
                self.report = told
            case message.Halted():
                self.halted = told


def argv_of(image: Image, cargo: Path, port: int) -> tuple[str, ...]:
    """Return QEMU's command line.

    Args:
        cargo: The writable disk.
        port: Descriptor of a connected socket that carries the messages.
    """
    disks = ((image.root, "format=raw,readonly=on"), (cargo, "format=raw,cache=unsafe"))
    return (
        QEMU.name,
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none"),
        *("-machine", "q35"),
        # One processor, on one thread: with more the host's kernel dies now and then.
        *("-accel", "tcg,thread=single,tb-size=512"),
        *("-smp", "1"),
        *("-cpu", "max,+svm,+npt"),
        *("-m", "6144"),
        *("-kernel", os.fspath(image.kernel)),
        *("-initrd", os.fspath(image.initrd)),
        # Of the image's own options the last counts: what guards tenants only costs time here.
        *("-append", f"{image.command_line} init_on_free=0 mitigations=off oops=panic"),
        *("-serial", "stdio"),
        *("-chardev", f"socket,id=port,fd={port}"),
        *("-device", "virtio-serial-pci"),
        *("-device", f"virtserialport,chardev=port,name={PORT_NAME}"),
        *(
            word
            for number, (file, options) in enumerate(disks)
            for word in (
                *("-drive", f"id=d{number},if=none,file={file},{options}"),
                *("-device", f"virtio-blk-pci,drive=d{number}"),
            )
        ),
    )


async def run(
    image: Image, cargo: Path, limits: Limits, record: Record, show: Callable[[str], None]
) -> Ending:
    """Run the machine to its end, and end it when its time is up or this is cancelled.

    Args:
        record: Is told every message as it comes.
        show: Is given what the machine prints as it comes.

    Raises:
        OSError: QEMU cannot be started.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        argv = argv_of(image, cargo, theirs.fileno())
        process = await asyncio.create_subprocess_exec(
            # Whatever becomes of this process, no machine is left behind.
            *("setpriv", "--pdeathsig", "KILL", "--", *argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        try:
            await _watch(process, ours, limits, record, show)
        except TimeoutError:
            return Ending.STUCK_IN_RING if record.began else Ending.STUCK_AT_BOOT
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    return Ending.DIED if record.halted is None else Ending.HALTED


async def _watch(
    process: asyncio.subprocess.Process,
    port: socket.socket,
    limits: Limits,
    record: Record,
    show: Callable[[str], None],
) -> None:
    """Show and hear all until QEMU has ended by itself.

    Raises:
        TimeoutError: A limit is up; QEMU may still run.
    """
    assert process.stdout is not None
    began = asyncio.Event()
    async with asyncio.timeout(limits.boot) as deadline, asyncio.TaskGroup() as tasks:
        tasks.create_task(_print(process.stdout, show))
        tasks.create_task(_listen(port, record, began))
        tasks.create_task(process.wait())
        await began.wait()
        deadline.reschedule(asyncio.get_running_loop().time() + limits.ring)


async def _print(console: asyncio.StreamReader, show: Callable[[str], None]) -> None:
    text = Console()
    while data := await console.read(_CHUNK):
        show(text.feed(data))


async def _listen(port: socket.socket, record: Record, began: asyncio.Event) -> None:
    """Hear every message until QEMU ends; `began` is set by then at the latest."""
    port.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=port, limit=message.MAX_BYTES)
    try:
        while await _hear_next(reader, record):
            if record.began:
                began.set()
    finally:
        began.set()
        writer.close()


async def _hear_next(reader: asyncio.StreamReader, record: Record) -> bool:
    """Hear one message; return whether there may be another."""
    try:
        line = await reader.readline()
        if line:
            record.hear(message.decode(line))
    except ValueError:  # also of a line that is too long, which the reader drops
        record.malformed += 1
        return True
    return bool(line)
