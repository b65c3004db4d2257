"""A DNS server of the tests' own, in the place of the internet's; it tells what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass
class Zone:
    """What the server knows, and what it was asked.

    Attributes:
        records: Lines as in a zone file, `name ttl IN type data`, by the name asked for and type.
        asked: Name, type and transport of each question.
        rcode: Of every answer, which is empty; `None` for answers from the records.
        silent: Names that get no answer.
        cut: Names whose answers by datagram say that they are too long for one.
        wires: Each message, as it came.
        arrived: Is released for each message.
    """

    records: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    rcode: dns.rcode.Rcode | None = None
    silent: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)
    wires: list[bytes] = field(default_factory=list)
    arrived: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    @property
    def names(self) -> list[str]:
        """The names that were asked for, in order."""
        return [name for name, _, _ in self.asked]

    def add(self, *lines: str) -> None:
        """Add records, answered together to the first one's name and the last one's type."""
        name, kind = lines[0].split()[0], lines[-1].split()[3]
        self.records[name, kind] = list(lines)

    def answer(self, wire: bytes, transport: str) -> bytes | None:
        """Return the answer to a message, `None` for none."""
        query = dns.message.from_wire(wire)
        self.wires.append(wire)
        self.arrived.release()
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind, transport))
        if name in self.silent:
            return None
        reply = dns.message.make_response(query, recursion_available=True)
        if self.rcode is not None:
            reply.set_rcode(self.rcode)
            return reply.to_wire()
        if name in self.cut and transport == "udp":
            reply.flags |= dns.flags.TC
            return reply.to_wire()
        lines = self.records.get((name, kind))
        if lines is None:
            known = any(each == name for each, _ in self.records)
            reply.set_rcode(dns.rcode.NOERROR if known else dns.rcode.NXDOMAIN)
        for line in lines or []:
            owner, ttl, _, of, data = line.split(maxsplit=4)
            rrset = reply.find_rrset(
                reply.answer,
                dns.name.from_text(owner),
                question.rdclass,
                dns.rdatatype.from_text(of),
                create=True,
            )
            for record in dns.rrset.from_text(owner + ".", int(ttl), "IN", of, data):
                rrset.add(record, int(ttl))
        return reply.to_wire(max_size=65_535)


def loopback_sockets() -> tuple[socket.socket, socket.socket]:
    """Return sockets for datagrams and for streams at one port that is free for both."""
    while True:
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        datagrams.bind(("127.0.0.1", 0))
        try:
            listener.bind(datagrams.getsockname())
        except OSError:  # somebody else's for streams
            datagrams.close()
            listener.close()
        else:
            datagrams.setblocking(False)
            listener.setblocking(False)
            return datagrams, listener


@contextlib.asynccontextmanager
async def serving(
    zone: Zone, datagrams: socket.socket, listener: socket.socket
) -> AsyncIterator[None]:
    """Answer from a zone for the time of a block, on bound sockets that become the server's."""
    loop = asyncio.get_running_loop()

    class Datagrams(asyncio.DatagramProtocol):
        transport: asyncio.DatagramTransport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = cast("asyncio.DatagramTransport", transport)

        def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
            answer = zone.answer(data, "udp")
            if answer is not None:
                self.transport.sendto(answer, addr)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = await reader.readexactly(int.from_bytes(await reader.readexactly(2)))
        answer = zone.answer(wire, "tcp")
        if answer is not None:
            writer.write(len(answer).to_bytes(2) + answer)
            await writer.drain()
        writer.close()

    transport, _ = await loop.create_datagram_endpoint(Datagrams, sock=datagrams)
    server = await asyncio.start_server(serve, sock=listener)
    try:
        async with server:
            yield
    finally:
        transport.close()
