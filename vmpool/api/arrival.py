"""Arrival: how connections come to the server, in TLS where it has a certificate.

One port speaks both. What comes from this host may come without TLS, as its command line and a
proxy beside it do; who comes from elsewhere without it is told so, and nothing that he sends is
looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from typing import TYPE_CHECKING, Final

from vmpool.cancellation import uninterrupted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiohttp import web

    from vmpool.api.door import Door
    from vmpool.api.presentation import Presentation

log = logging.getLogger(__name__)

BACKLOG: Final = 1024

_HANDSHAKE: Final = 0x16
"""A TLS record's first byte, and of nothing in HTTP: RFC 8446, 5.1."""

_RETRY_SECONDS: Final = 1.0
"""Until a host that has no descriptor left is asked for one again."""

_FAREWELL_SECONDS: Final = 1.0
"""For the end of TLS to be said: RFC 8446 lets a server leave without an answer."""

_IN_CLEAR: Final = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n"
    b"Content-Length: 35\r\n\r\nthis port speaks TLS: use https://\n"
)


@contextlib.asynccontextmanager
async def accepting(
    listening: socket.socket, serving: web.Server, door: Door, shown: Presentation | None
) -> AsyncIterator[None]:
    """Take connections for the time of a block.

    Args:
        listening: A bound socket; stays open.
        serving: Talks to those that come.
        door: Lets them in.
        shown: The certificate; `None` for a server that speaks no TLS.
    """
    loop = asyncio.get_running_loop()
    if shown is None:
        server = await loop.create_server(
            lambda: door.meet(serving), sock=listening, backlog=BACKLOG
        )
        try:
            yield
        finally:
            server.close()
        return
    listening.setblocking(False)
    listening.listen(BACKLOG)
    taking = asyncio.create_task(_Arrivals(listening, serving, door, shown).take())
    try:
        yield
    finally:
        taking.cancel()
        await uninterrupted(asyncio.wait([taking]))


class _Arrivals:
    """Connections between `accept` and their first request."""

    def __init__(
        self, listening: socket.socket, serving: web.Server, door: Door, shown: Presentation
    ) -> None:
        self._listening = listening
        self._serving = serving
        self._door = door
        self._shown = shown
        self._greeted: set[asyncio.Task[None]] = set()

    async def take(self) -> None:
        """Take whoever comes, until cancelled."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as greetings:
            while True:
                try:
                    connection, peer = await loop.sock_accept(self._listening)
                except ConnectionError:
                    continue  # it left before it was taken
                except OSError as err:
                    log.error("no connection can be taken: %s", err)
                    await asyncio.sleep(_RETRY_SECONDS)
                    continue
                if self._door.is_full(self._serving, arriving=len(self._greeted)):
                    connection.close()
                else:
                    greeting = greetings.create_task(self._greet(connection, peer[0]))
                    self._greeted.add(greeting)
                    greeting.add_done_callback(self._greeted.discard)
                await asyncio.sleep(0)  # as long as somebody waits, `sock_accept` does not

    async def _greet(self, connection: socket.socket, peer: str) -> None:
        loop, patience = asyncio.get_running_loop(), self._door.patience
        with contextlib.ExitStack() as held:
            held.enter_context(connection)
            try:
                async with asyncio.timeout(patience):
                    first = await _first_byte(connection)
                    context = await self._shown.context() if first == _HANDSHAKE else None
                    if context is None and not _is_loopback(peer):
                        await _refuse(connection)
                        return
                    held.pop_all()  # the loop closes it from here on
                    await loop.connect_accepted_socket(
                        lambda: self._door.meet(self._serving),
                        connection,
                        ssl=context,
                        ssl_handshake_timeout=None if context is None else patience,
                        ssl_shutdown_timeout=None if context is None else _FAREWELL_SECONDS,
                    )
            except (TimeoutError, OSError) as err:  # ssl.SSLError is an OSError
                log.debug("a connection ended before its first request: %s", err)
            except Exception:  # whatever it was, others are to be taken
                log.exception("a connection failed in a way nobody foresaw")


async def _first_byte(connection: socket.socket) -> int | None:
    """Return what a client sends first, and leave it there; `None` when it sends nothing."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(connection, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(connection)
    return next(iter(connection.recv(1, socket.MSG_PEEK)), None)


async def _refuse(connection: socket.socket) -> None:
    """Say in the clear what to do; what was sent is read first, or the answer would be lost."""
    loop = asyncio.get_running_loop()
    await loop.sock_recv(connection, 1 << 16)
    await loop.sock_sendall(connection, _IN_CLEAR)
    connection.shutdown(socket.SHUT_WR)


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
