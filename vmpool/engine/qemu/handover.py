"""Handover: what one QEMU is started with, as open descriptors.

QEMU opens nothing by itself that matters: its sockets, memory, disks and devices are opened here,
by who may, and reach it under fixed numbers. The directories stay closed to it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool.engine.qemu import command, hypervisor, vsock
from vmpool.engine.qemu.command import Instance, Slot
from vmpool.engine.qemu.console import Console
from vmpool.engine.qemu.monitor import listen
from vmpool.errors import DiskFullError, EngineError, HostError, InvalidRequestError
from vmpool.model import SerialAddress, Transport, VsockAddress

if TYPE_CHECKING:
    from vmpool.engine.qemu.isolation import Jail
    from vmpool.model import AgentAddress, Attachment, MachineSpec

AGENT_SOCKET = "agent"

_KVM = "/dev/kvm"
_SOCKET_PATH_LIMIT_BYTES = 107  # unix(7): sun_path without its final zero


class Handover:
    """The descriptors that one QEMU is started with; ours are closed at the end."""

    def __init__(self, spec: MachineSpec, at: Attachment) -> None:
        self.spec = spec
        self.directory = at.directory
        self.slots: dict[int, int] = {}
        self.agent_address: AgentAddress
        self.instance: Instance
        self._wanted_cid = at.cid
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Handover:
        with self._held:
            self._fill()
            self._held = self._held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def put(self, slot: Slot, descriptor: int) -> None:
        """Hand over `descriptor` as `slot`; it is closed here at the end."""
        self._held.callback(os.close, descriptor)
        self.slots[slot] = descriptor

    def _fill(self) -> None:
        cid = None
        self._put_socket(Slot.QMP, hypervisor.QMP_SOCKET)
        self.put(Slot.ROOT, open_file(self.spec.root, os.O_RDONLY))
        self.put(Slot.CEILING, os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        if command.takes_kvm_descriptor(self.spec):
            self.put(Slot.KVM, _open_kvm())
        match self.spec.transport:
            case Transport.SERIAL:
                self.agent_address = SerialAddress(path=self.directory / AGENT_SOCKET)
                _require_short(self.agent_address.path)
                self._put_socket(Slot.AGENT, AGENT_SOCKET)
            case Transport.VSOCK:
                claim = vsock.claim(self._wanted_cid)
                self.put(Slot.VHOST, claim.descriptor)
                self.agent_address = VsockAddress(cid=claim.cid)
                cid = claim.cid
        self.instance = Instance(name=self.directory.name, cid=cid)

    def _put_socket(self, slot: Slot, name: str) -> None:
        self.put(slot, listen(self.directory, name).detach())


def open_file(path: Path, flags: int) -> int:
    """Open a file that must be there; the descriptor is the caller's.

    Raises:
        EngineError: It cannot be opened.
    """
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError as err:
        raise EngineError(f"cannot open {str(path)!r}: {err.strerror}") from err


def create_file(path: Path, flags: int) -> int:
    """Create a file that must not be there; the descriptor is the caller's.

    Raises:
        DiskFullError: The disk is full.
        EngineError: It cannot be created.
    """
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise _not_created(path, err) from err


def _not_created(path: Path, err: OSError) -> DiskFullError | EngineError:
    if err.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFullError(f"no space for {str(path)!r}")
    return EngineError(f"cannot create {str(path)!r}: {err.strerror}")


def listen_console(path: Path) -> Console:
    """Return what keeps the end of a booting guest's console at `path`.

    Raises:
        DiskFullError, EngineError: As `create_file`.
    """
    try:
        return Console(path)
    except OSError as err:
        raise _not_created(path, err) from err


def new_memory(path: Path, size_bytes: int, jail: Jail) -> int:
    """Create the file that is a booting machine's RAM; the descriptor is the caller's.

    Args:
        jail: Whose account it belongs to.

    Raises:
        InvalidRequestError: No file here can be as large; code `machine_too_large`.
        DiskFullError, EngineError: As `create_file`.
    """
    descriptor = create_file(path, os.O_RDWR)
    try:
        os.ftruncate(descriptor, size_bytes)
        if jail.account is not None:
            # QEMU opens it once more through /proc, as whom it runs as.
            os.fchown(descriptor, jail.account.uid, -1)
    except OSError as err:
        os.close(descriptor)
        raise InvalidRequestError(
            f"cannot make {size_bytes} bytes of memory: {err.strerror}",
            code="machine_too_large",
            remedy="give the template less memory",
        ) from err
    return descriptor


def kvm_group() -> int:
    """Return the group that may open `/dev/kvm`.

    Raises:
        HostError: `kvm_missing`.
    """
    try:
        return Path(_KVM).stat().st_gid
    except OSError as err:
        raise _kvm_missing(err) from err


def _open_kvm() -> int:
    try:
        return os.open(_KVM, os.O_RDWR | os.O_CLOEXEC)
    except OSError as err:
        raise _kvm_missing(err) from err


def _kvm_missing(err: OSError) -> HostError:
    return HostError(
        f"cannot open {_KVM}: {err.strerror}",
        code="kvm_missing",
        remedy="add this account to the group kvm, or use the accelerator 'tcg'",
    )


def _require_short(path: Path) -> None:
    if len(os.fsencode(path)) > _SOCKET_PATH_LIMIT_BYTES:
        raise HostError(
            f"{str(path)!r} is longer than the {_SOCKET_PATH_LIMIT_BYTES} bytes of a socket's path",
            code="run_path_too_long",
            remedy="choose a shorter directory for running clones",
        )
