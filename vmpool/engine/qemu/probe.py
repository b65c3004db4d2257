"""Probe: what this host can do, found out by doing it.

A `/dev/kvm` that opens proves little: nested and paravirtual back ends exist that run firmware and
fail on the first 64-bit kernel. So a guest of a few instructions, which `rom` assembles, is run in
place of the firmware, and reports through QEMU's exit code.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmpool.engine.qemu import process as processes
from vmpool.engine.qemu import rom, vsock
from vmpool.engine.qemu.command import INTERRUPTS_UNDER_KVM, parse_version
from vmpool.errors import HostError
from vmpool.model import Accelerator, Transport

if TYPE_CHECKING:
    from vmpool.engine.qemu.isolation import Isolation

log = logging.getLogger(__name__)

MINIMUM = (8, 2)
"""First QEMU with the `file:` migration transport and read-only private memory backends."""

KVM = "/dev/kvm"

_VERSION_TIMEOUT = 10.0
# A guest that passes takes a fraction of a second, and 2 s on a host that is itself emulated.
_GUEST_TIMEOUT = 15.0
_KVM_STUCK = b"KVM internal error"
_WORDS_BYTES = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What was chosen, and why, in words for an operator; empty when nothing is amiss."""

    accelerator: Accelerator
    reason: str = ""
    remedy: str = ""


async def query_version(binary: str) -> str:
    """Return QEMU's version.

    Raises:
        HostError: It is missing (`qemu_missing`), too old (`qemu_too_old`), or does not say.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            binary,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError as err:
        raise HostError(
            f"cannot run {binary!r}: {err.strerror}",
            code="qemu_missing",
            remedy="vmpool doctor --install",
        ) from err
    try:
        async with asyncio.timeout(_VERSION_TIMEOUT):
            output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return read_version(binary, output.decode(errors="replace"))


def read_version(binary: str, output: str) -> str:
    """Return the version in what `--version` printed.

    Raises:
        HostError: It is too old (`qemu_too_old`), or not there (`qemu_unfit`).
    """
    found = re.search(r"version (\d+\.\d+[.\d]*)", output)
    if found is None:
        raise HostError(f"{binary!r} does not tell its version: {output!r}", code="qemu_unfit")
    version = found[1]
    if parse_version(version) < MINIMUM:
        raise HostError(
            f"QEMU {version} is too old, {'.'.join(map(str, MINIMUM))} or later is needed",
            code="qemu_too_old",
            remedy="vmpool doctor --install",
        )
    return version


def probe_transport() -> Transport:
    """Return vsock where the kernel grants a context id, virtio-serial elsewhere."""
    try:
        claim = vsock.claim()
    except HostError:
        return Transport.SERIAL
    os.close(claim.descriptor)
    return Transport.VSOCK


async def probe_accelerator(binary: str, isolation: Isolation) -> Probe:
    """Return KVM where it runs 64-bit code for the account that QEMU runs as, TCG elsewhere.

    Takes a fraction of a second, and `_GUEST_TIMEOUT` at most when the guest hangs. What QEMU says
    of a guest that fails goes to the log: it tells nothing to who has to choose another host.

    Raises:
        HostError: QEMU is missing, or cannot be isolated.
    """
    try:
        kvm = os.open(KVM, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return Probe(
            accelerator=Accelerator.TCG,
            reason=f"there is no {KVM}",
            remedy="enable virtualization in the firmware and load kvm_intel or kvm_amd",
        )
    except OSError as err:
        return Probe(
            accelerator=Accelerator.TCG,
            reason=f"cannot open {KVM}: {err.strerror}",
            remedy="add this account to the group kvm",
        )
    try:
        failure = await _run_guest(binary, isolation, kvm)
    finally:
        os.close(kvm)
    if failure:
        log.info("%s is of no use: %s", KVM, failure)
        return Probe(
            accelerator=Accelerator.TCG,
            reason=f"{KVM} opens but cannot run 64-bit guest code",
            remedy="use a host with hardware virtualization (VT-x or SVM, nested if need be)",
        )
    return Probe(accelerator=Accelerator.KVM)


async def _run_guest(binary: str, isolation: Isolation, kvm: int) -> str:
    """Run the guest and return how it failed, empty when it passed."""
    words, log = os.pipe2(os.O_CLOEXEC)
    try:
        with tempfile.TemporaryFile() as rom_file, isolation.for_one() as jail:
            os.fchmod(rom_file.fileno(), 0o444)  # QEMU opens it once more, as another account
            rom_file.write(rom.assemble())
            rom_file.flush()
            process = await processes.spawn(
                (binary, *guest_argv(f"kvm,{INTERRUPTS_UNDER_KVM},device=/dev/fdset/3", "host")),
                slots={3: kvm, 4: rom_file.fileno()},
                log=log,
                jail=jail,
            )
    except BaseException:
        os.close(words)
        raise
    finally:
        os.close(log)
    try:
        said = await _last_words(words)
    finally:
        await process.kill()
    if process.exit_code == rom.EXIT_CODE:
        return ""
    return "; ".join(said.splitlines()[:2]) or f"QEMU ended with {process.exit_code}"


async def _last_words(pipe: int) -> str:
    """Return what QEMU says until it ends, or is stuck; closes `pipe`."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(pipe, "rb", 0)
    )
    said = b""
    try:
        async with asyncio.timeout(_GUEST_TIMEOUT):
            # After an instruction that it cannot run, KVM stops the machine, and QEMU waits.
            while (data := await reader.read(512)) and _KVM_STUCK not in (said := said + data):
                if len(said) > _WORDS_BYTES:
                    break
    except TimeoutError:
        said += f"no end within {_GUEST_TIMEOUT:g} s".encode()
    finally:
        transport.close()
    return said[:_WORDS_BYTES].decode(errors="replace")


def guest_argv(accelerator: str, cpu: str) -> list[str]:
    """Return QEMU's arguments to run the ROM in descriptor 4 in place of its firmware."""
    return [
        *("-nodefaults", "-no-user-config"),
        *("-display", "none"),
        *("-machine", "q35,sata=off,usb=off,smbus=off,hpet=off,vmport=off"),
        *("-add-fd", "fd=3,set=3"),
        *("-accel", accelerator),
        *("-cpu", cpu),
        *("-m", "16M"),
        *("-bios", "/proc/self/fd/4"),
        "-no-reboot",
        *("-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
    ]
