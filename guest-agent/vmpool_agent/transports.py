"""Transports: the ways a host's byte stream reaches the agent, the same protocol on each."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool_agent.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool_agent.reactor import Reactor
    from vmpool_agent.session import Service

PORT_NAME = "vmpool.agent"
VSOCK_PORT = 1024
_VMADDR_CID_HOST = 2  # linux/vm_sockets.h
_BACKLOG = 16
_DEVICE_WAIT = 10.0
_DEVICE_POLL = 0.02
_PORTS = Path("/sys/class/virtio-ports")


class Listener:
    """Accepts connections, each a session of its own, until it is closed.

    Args:
        listening: Bound and listening; owned from here on.
        service: What each session offers.
        most: How many sessions at a time; further connections wait.
    """

    def __init__(
        self, reactor: Reactor, listening: socket.socket, service: Service, most: int
    ) -> None:
        self._reactor = reactor
        self._socket = listening
        self._service = service
        self._most = most
        self._sessions: set[Session] = set()
        listening.setblocking(False)
        reactor.watch(listening.fileno(), self._accept)

    def close(self) -> None:
        """Close all sessions and listen no longer."""
        for session in self._sessions:
            session.close()
        self._reactor.forget(self._socket.fileno())
        self._socket.close()

    def _accept(self) -> None:
        while len(self._sessions) < self._most:
            try:
                accepted, _ = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as err:
                if err.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                    return
                continue  # that connection was reset before it was accepted
            if not _is_host(accepted):
                accepted.close()
                continue
            accepted.setblocking(False)
            session = Session(self._reactor, accepted.detach(), self._service, self._on_hangup)
            self._sessions.add(session)

    def _on_hangup(self, session: Session) -> None:
        session.close()
        self._sessions.discard(session)
        self._reactor.soon(self._accept)


def open_streams(reactor: Reactor, service: Service, cid: Callable[[], int | None]) -> None:
    """Serve the host over whatever this machine has, once it is there.

    Drivers announce their devices by and by, and nothing tells of it but udev, which is not here.
    That the kernel lets us listen over vsock says nothing: it does so without a device, too.

    Args:
        reactor: Calls back when the host says something.
        service: What each stream offers.
        cid: Returns the context id of the vsock device, `None` as long as there is none.
    """
    listen_on_vsock(reactor, service)
    deadline = time.monotonic() + _DEVICE_WAIT
    while not open_serial_port(reactor, service):
        if cid() is not None or time.monotonic() >= deadline:
            return
        time.sleep(_DEVICE_POLL)


def listen_on_vsock(reactor: Reactor, service: Service) -> None:
    """Listen for the host over vsock where this kernel has it, with a device or without."""
    try:
        listening = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listening.bind((socket.VMADDR_CID_ANY, VSOCK_PORT))
        listening.listen(_BACKLOG)
    except (OSError, AttributeError):
        return
    Listener(reactor, listening, service, _BACKLOG)


def open_serial_port(reactor: Reactor, service: Service) -> bool:
    """Serve the virtio-serial port of our name; return whether there is one.

    The port stays open for good: with no host on its other end it reads as ended, and the session
    begins anew.
    """
    path = find_serial_port()
    if path is None:
        return False
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    Session(reactor, fd, service, _stay)
    return True


def find_serial_port() -> Path | None:
    """Return the device of the virtio-serial port of our name."""
    if not _PORTS.is_dir():
        return None
    for port in sorted(_PORTS.iterdir()):
        with contextlib.suppress(OSError):
            if (port / "name").read_text().strip() == PORT_NAME:
                return Path("/dev") / port.name
    return None


def _stay(_session: Session) -> None:
    """Keep a port whose host is gone: the next one comes over the same descriptor."""


def _is_host(accepted: socket.socket) -> bool:
    """Whether a connection is the host's own; a program in the guest must not command the agent."""
    vsock = getattr(socket, "AF_VSOCK", None)
    try:
        return accepted.family != vsock or accepted.getpeername()[0] == _VMADDR_CID_HOST
    except OSError:
        return False
