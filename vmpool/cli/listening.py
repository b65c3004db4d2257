"""Listening: the address that a server serves on, and how it stops.

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

from aiohttp import web

from vmpool.cli import report
from vmpool.errors import HostError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

DEFAULT_LISTEN = "127.0.0.1:8700"

BACKLOG = 1024

GRACE = 10.0
"""Seconds that requests in flight are given when the server stops."""

KEEP_ALIVE = 640.0
"""Seconds an idle connection is kept: longer than the pools of common clients, which would
otherwise send a request into a connection that is just being closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """An address to listen on, as `HOST:PORT`, `[v6]:PORT`; port 0 lets the kernel choose."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read an address.

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
    other = Listen(host=listen.host, port=(listen.port + 1) % (1 << 16))
    match err.errno:
        case errno.EADDRINUSE:
            return HostError(
                f"something else listens on {listen} already",
                code="address_in_use",
                remedy=f"see what: ss -ltnp 'sport = :{listen.port}'; stop it, "
                f"or choose another address: --listen {other}",
            )
        case errno.EACCES:
            return HostError(
                f"this account may not listen on {listen}",
                code="address_forbidden",
                remedy=f"choose a port over 1023: --listen {listen.host}:8700",
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


class Interrupts:
    """SIGINT and SIGTERM, counted: the first asks to stop, the second hurries, the third exits."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    @classmethod
    @contextlib.contextmanager
    def caught(cls) -> Iterator[Self]:
        """Catch the signals on the running loop for as long as the block runs."""
        self = cls()
        loop = asyncio.get_running_loop()
        caught = (signal.SIGINT, signal.SIGTERM)
        for number in caught:
            loop.add_signal_handler(number, self._count)
        try:
            yield self
        finally:
            for number in caught:
                loop.remove_signal_handler(number)

    def _count(self) -> None:
        if not self.first.is_set():
            self.first.set()
        elif not self.second.is_set():
            self.second.set()
        else:
            # The machines that this leaves behind are reaped when a server starts here again.
            os._exit(report.ExitCode.INTERRUPTED)


@contextlib.asynccontextmanager
async def serving(
    app: web.Application, listener: socket.socket, interrupts: Interrupts
) -> AsyncIterator[None]:
    """Serve an application for as long as the block runs.

    Requests in flight are given `GRACE` seconds at the end, none when interrupted twice.
    """
    runner = web.AppRunner(
        app,
        handle_signals=False,
        access_log=None,
        shutdown_timeout=GRACE,
        keepalive_timeout=KEEP_ALIVE,
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
        yield
    finally:
        await _stop(runner, interrupts)


async def _stop(runner: web.AppRunner, interrupts: Interrupts) -> None:
    async with asyncio.TaskGroup() as tasks:
        hurrying = tasks.create_task(_hurry(runner, interrupts))
        await runner.cleanup()
        hurrying.cancel()


async def _hurry(runner: web.AppRunner, interrupts: Interrupts) -> None:
    await interrupts.second.wait()
    report.say("not waiting for the requests in flight")
    if runner.server is not None:
        await runner.server.shutdown(0)
