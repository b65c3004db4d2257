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
from enum import Enum, auto
from typing import TYPE_CHECKING, Self

from vmpool.cli import report
from vmpool.errors import HostError
from vmpool.tenure import HAND_OVER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from vmpool.address import Address


@contextlib.contextmanager
def bound(address: Address) -> Iterator[socket.socket]:
    """Yield a socket bound to an address, not listening yet.

    Raises:
        HostError: `address_in_use`, `address_forbidden` or `address_unavailable`.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as err:
        raise _refusal(address, err) from err
    with listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
        except OSError as err:
            raise _refusal(address, err) from err
        yield listener


def _refusal(address: Address, err: OSError) -> HostError:
    written = _written(address.host, address.port)
    match err.errno:
        case errno.EADDRINUSE:
            other = _written(address.host, (address.port + 1) % (1 << 16))
            return HostError(
                f"something listens on {written} already",
                code="address_in_use",
                remedy="if that is vmpool, just use it: vmpool run; if not, see what it is: "
                f"ss -ltnp 'sport = :{address.port}'; or listen elsewhere: --listen {other}",
            )
        case errno.EACCES:
            return HostError(
                f"this account may not listen on {written}",
                code="address_forbidden",
                remedy=f"choose a port over 1023: --listen {_written(address.host, 8700)}",
            )
        case _:
            return HostError(
                f"cannot listen on {written}: {err.strerror or err}",
                code="address_unavailable",
                remedy="choose an address of this host: ip -brief address",
            )


def _written(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def url_of(listener: socket.socket) -> str:
    """Return how a client on this host reaches a bound socket."""
    host, port = listener.getsockname()[:2]
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 -- compared
    return f"http://{_written(reachable, port)}"


class Interrupt(Enum):
    """What ends a server."""

    STOP = auto()
    """SIGINT or SIGTERM."""
    HAND_OVER = auto()
    """Another server asks for its place, as `tenure.succeed` does."""


_SIGNALS = {
    signal.SIGINT: Interrupt.STOP,
    signal.SIGTERM: Interrupt.STOP,
    HAND_OVER: Interrupt.HAND_OVER,
}


class Interrupts:
    """The signals that end a server, while a block runs, on the loop and in the task that enter it.

    The first one ends `wait`; where nobody waits yet it cancels the task, and the block raises
    `KeyboardInterrupt` once it is unwound. A second SIGINT or SIGTERM ends the process at once.
    """

    def __init__(self) -> None:
        self._asked: asyncio.Future[Interrupt] = asyncio.get_running_loop().create_future()
        self._awaited = False
        self._cancelled: asyncio.Task[object] | None = None

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        for number, what in _SIGNALS.items():
            loop.add_signal_handler(number, self._interrupt, what, task)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
        if self._cancelled is not None and kind is asyncio.CancelledError:
            self._cancelled.uncancel()
            raise KeyboardInterrupt from error

    async def wait(self) -> Interrupt:
        """Return what has come once a signal has."""
        self._awaited = True
        return await asyncio.shield(self._asked)

    def _interrupt(self, what: Interrupt, task: asyncio.Task[object]) -> None:
        if self._asked.done():
            if what is Interrupt.HAND_OVER:
                return
            report.say("leaving at once; the next start settles what is left")
            os._exit(report.ExitCode.INTERRUPTED)
        self._asked.set_result(what)
        if not self._awaited:
            self._cancelled = task
            task.cancel()
