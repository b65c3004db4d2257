"""An internet for tests: namespaces that the tests make, and what answers in them.

`home` is where a server lives. It has one link, to `world`, where all the addresses are that a
guest may try, with an echo on each: what comes by TCP or UDP is sent back behind the address that
it came from. Nothing of it touches the machine's own network.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import cast

import aiohttp

from tests import netns
from tests.dns_server import Zone, serving
from tests.serving import CALL_SECONDS, Api, Server
from vmpool.network.namespace import Namespace, call_in, socket_in

HOME = "198.51.100.2"
"""The server's own address, which is everybody's outside."""

WORLD = "198.51.100.1"
"""The router of the internet, and its DNS server."""

ALLOWED = "203.0.113.5"
OTHER = "203.0.113.9"
PRIVATE = "10.9.9.9"
METADATA = "169.254.169.254"

PORT = 7000
ALSO = 7001


@dataclass
class Internet:
    """The namespaces, and what was said in them.

    Attributes:
        heard: Who sent what to which address, of all that came by TCP or UDP.
    """

    home: Namespace
    world: Namespace
    zone: Zone
    heard: list[tuple[str, str, str]] = field(default_factory=list)

    def run(self, where: Namespace, *argv: str) -> str:
        """Run a program in a namespace; return what it printed."""
        full = ["nsenter", f"--net={where.path}", *argv]
        return subprocess.run(full, check=True, capture_output=True, text=True).stdout

    def program(self) -> tuple[str, ...]:
        """What a server's command line begins with, for it to live at home."""
        return ("nsenter", f"--net={self.home.path}")

    def senders(self, address: str) -> set[str]:
        """Return who was heard at an address."""
        return {sender for sender, to, _ in self.heard if to == address}

    @contextlib.asynccontextmanager
    async def client(self, server: Server) -> AsyncIterator[Api]:
        """A client of a server at home, on the token of its host."""

        def connect(info: aiohttp.AddrInfoType) -> socket.socket:
            return socket_in(self.home, info[0], info[1], info[2])

        limits = aiohttp.ClientTimeout(total=CALL_SECONDS)
        connector = aiohttp.TCPConnector(socket_factory=connect)
        headers = {"Authorization": f"Bearer {server.ground.token}"}
        async with aiohttp.ClientSession(
            server.url, headers=headers, timeout=limits, connector=connector
        ) as session:
            yield Api(session, server.template)


@contextlib.contextmanager
def namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    """Yield `home` and `world`, linked."""
    with netns.made() as home, netns.made() as world:
        _ip(home, f"link add out type veth peer name in netns {world.name}")
        _ip(home, f"addr add {HOME}/24 dev out")
        _ip(world, f"addr add {WORLD}/24 dev in")
        for where, name in ((home, "lo"), (home, "out"), (world, "lo"), (world, "in")):
            _ip(where, f"link set {name} up")
        _ip(home, f"route add default via {WORLD}")
        for address in (ALLOWED, OTHER, PRIVATE, METADATA):
            _ip(world, f"addr add {address}/32 dev lo")
        _ip(home, f"route add {METADATA}/32 via {WORLD}")
        yield home, world


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Internet]:
    """Yield the whole, with all that answers."""
    async with contextlib.AsyncExitStack() as stack:
        home, world = stack.enter_context(namespaces())
        internet = Internet(home, world, Zone())
        for port in (PORT, ALSO):
            await stack.enter_async_context(_echo_stream(internet, world, port))
            for address in (ALLOWED, OTHER, PRIVATE, METADATA):
                await stack.enter_async_context(_echo_datagrams(internet, world, address, port))
        await stack.enter_async_context(_echo_stream(internet, home, PORT))
        await stack.enter_async_context(_echo_datagrams(internet, home, HOME, PORT))
        datagrams, listener = call_in(world, lambda: _dns_sockets(WORLD))
        await stack.enter_async_context(serving(internet.zone, datagrams, listener))
        yield internet


def _ip(where: Namespace, arguments: str) -> None:
    subprocess.run(["ip", "-n", where.name, *arguments.split()], check=True)


def _dns_sockets(address: str) -> tuple[socket.socket, socket.socket]:
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    for each in (datagrams, listener):
        each.bind((address, 53))
        each.setblocking(False)
    listener.listen(8)
    return datagrams, listener


@contextlib.asynccontextmanager
async def _echo_stream(internet: Internet, where: Namespace, port: int) -> AsyncIterator[None]:
    listener = socket_in(where, socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", port))

    talks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.current_task()
        assert talk is not None
        talks[talk] = writer
        talk.add_done_callback(talks.pop)
        here, there = writer.get_extra_info("sockname")[0], writer.get_extra_info("peername")[0]
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                internet.heard.append((there, here, data[:64].decode(errors="replace")))
                writer.write(f"{there} ".encode() + data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async with await asyncio.start_server(answer, sock=listener):
        yield
        for writer in talks.values():
            writer.transport.abort()  # whoever it is with may never end it
        await asyncio.gather(*talks)


@contextlib.asynccontextmanager
async def _echo_datagrams(
    internet: Internet, where: Namespace, address: str, port: int
) -> AsyncIterator[None]:
    class Echo(asyncio.DatagramProtocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.DatagramTransport", transport)

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            internet.heard.append((addr[0], address, data[:64].decode(errors="replace")))
            self.transport.sendto(f"{addr[0]} ".encode() + data, addr)

    bound = socket_in(where, socket.AF_INET, socket.SOCK_DGRAM)
    bound.setblocking(False)
    bound.bind((address, port))
    loop = asyncio.get_running_loop()
    transport, _ = await loop.create_datagram_endpoint(Echo, sock=bound)
    try:
        yield
    finally:
        transport.close()
