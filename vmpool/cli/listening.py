"""Listening: the address that a server is to serve on, and the signals that end it.

The socket is bound before anything slow begins, so that a taken port is said at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from vmpool.cli import report
from vmpool.errors import HostError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_LISTEN = "127.0.0.1:8700"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """An address to listen on; port 0 lets the kernel choose."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address as `HOST:PORT` or `[V6]:PORT`.

        Raises:
            InvalidRequestError: It is not one.
        """
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not (colon and host and port.isascii() and port.isdigit() and int(port) < 1 << 16):
            raise InvalidRequestError(
                f"{text!r} is no address to listen on",
                code="invalid_listen",
                remedy=f"give host and port, like --listen {DEFAULT_LISTEN}",
            )
        return cls(host=host, port=int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@contextlib.contextmanager
def bound(listen: Listen) -> Iterator[socket.socket]:
    """Yield a socket bound to an address, not listening yet.

    Raises:
        HostError: `address_in_use`, `address_forbidden` or `address_unavailable`.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            listen.host, listen.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as err:
        raise _refusal(listen, err) from err
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError as err:
            raise _refusal(listen, err) from err
        yield listener


def _refusal(listen: Listen, err: OSError) -> HostError:
    match err.errno:
        case errno.EADDRINUSE:
            other = Listen(host=listen.host, port=(listen.port + 1) % (1 << 16))
            return HostError(
                f"something listens on {listen} already",
                code="address_in_use",
                remedy="if that is vmpool, just use it: vmpool run; if not, see what it is: "
                f"ss -ltnp 'sport = :{listen.port}'; or listen elsewhere: --listen {other}",
            )
        case errno.EACCES:
            return HostError(
                f"this account may not listen on {listen}",
                code="address_forbidden",
                remedy=f"choose a port over 1023: --listen {DEFAULT_LISTEN}",
            )
        case _:
            return HostError(
                f"cannot listen on {listen}: {err.strerror or err}",
                code="address_unavailable",
                remedy="choose an address of this host: ip -brief address",
            )


def url_of(listener: socket.socket) -> str:
    """Return how a client on this host reaches a bound socket."""
    host, port = listener.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- compared
    return f"http://{Listen(host=reachable, port=port)}"


@contextlib.contextmanager
def interrupts() -> Iterator[asyncio.Event]:
    """Yield an event that the first SIGINT or SIGTERM sets; a second one ends the process at once.

    On the running loop, for as long as the block runs.
    """
    interrupted = asyncio.Event()
    loop = asyncio.get_running_loop()
    caught = (signal.SIGINT, signal.SIGTERM)

    def count() -> None:
        if interrupted.is_set():
            report.say("leaving at once; the next start clears up what is left")
            os._exit(report.ExitCode.INTERRUPTED)
        interrupted.set()

    for number in caught:
        loop.add_signal_handler(number, count)
    try:
        yield interrupted
    finally:
        for number in caught:
            loop.remove_signal_handler(number)
