"""In a slot's namespace, with the firewall's own rules: names open what they lead to, and no more.

The guest and the internet are namespaces of the tests' own.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
import time
from contextlib import aclosing
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

import dns.message
import dns.rcode
import pytest

from tests import dns_server
from tests.dns_server import Zone
from tests.wired_slot import OTHER_SERVER, SERVER, WiredSlot, wired_slot
from vmpool.egress import Destination, NetworkMode, NetworkPolicy, Ports, Protocol
from vmpool.errors import ConflictError, HostError
from vmpool.model import GUEST_MAC
from vmpool.network.addressing import GATEWAY, GATEWAY_MAC
from vmpool.network.capture import CaptureLimits
from vmpool.network.events import Denial, EventLog
from vmpool.network.namespace import Namespace, socket_in
from vmpool.network.services import Services
from vmpool.network.upstream import Server, Servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces are root's to make")

WEB = (Ports(443, 443),)
POLICY = NetworkPolicy(
    mode=NetworkMode.RESTRICTED,
    allow=(Destination(domain="*.pypi.org", protocol=Protocol.TCP, ports=WEB),),
)


@dataclass
class Bed:
    """A slot with its services, and who asks and answers at its ends."""

    wired: WiredSlot
    zone: Zone
    events: EventLog
    services: Services
    counted: list[str]

    async def ask(
        self, name: str, kind: str = "A", *, at: IPv4Address = GATEWAY
    ) -> dns.message.Message:
        """Ask as the guest does."""
        query = dns.message.make_query(name, kind)
        with self.guest_socket(socket.SOCK_DGRAM) as guest:
            guest.connect((str(at), 53))
            guest.send(query.to_wire())
            async with asyncio.timeout(20):
                wire = await asyncio.get_running_loop().sock_recv(guest, 4096)
        return dns.message.from_wire(wire)

    def guest_socket(self, kind: socket.SocketKind) -> socket.socket:
        made = socket_in(self.wired.guest, socket.AF_INET, kind)
        made.setblocking(False)
        return made

    def send_frame(self, kind: int, packet: bytes) -> None:
        """Send what no guest of ours would."""
        ends = (bytes.fromhex(mac.replace(":", "")) for mac in (GATEWAY_MAC, GUEST_MAC))
        with socket_in(self.wired.guest, socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind(("eth0", 0))
            link.send(b"".join(ends) + kind.to_bytes(2) + packet)

    async def connect(self, address: IPv4Address, port: int) -> None:
        """Connect as the guest does."""
        with self.guest_socket(socket.SOCK_STREAM) as guest:
            async with asyncio.timeout(20):
                await asyncio.get_running_loop().sock_connect(guest, (str(address), port))

    async def denial(self, rule: str) -> Denial:
        """Return the first denial by a rule, once it is told."""
        async with asyncio.timeout(20), aclosing(self.events.follow(0)) as pages:
            async for page in pages:
                for event in page.events:
                    if event.denial.rule == rule:
                        return event.denial
        raise AssertionError(rule)


@pytest.fixture
async def bed() -> AsyncIterator[Bed]:
    """A slot whose guest may ask for what is below pypi.org, and go there by HTTPS."""
    zone, counted = Zone(), list[str]()
    zone.add(f"files.pypi.org 300 IN A {SERVER}")
    async with contextlib.AsyncExitStack() as stack:
        wired = stack.enter_context(wired_slot(POLICY))
        datagrams, listener = dns_server.loopback_sockets()
        port = datagrams.getsockname()[1]
        await stack.enter_async_context(dns_server.serving(zone, datagrams, listener))
        for server_port in (443, 80):
            web = stack.enter_context(socket_in(wired.internet, socket.AF_INET, socket.SOCK_STREAM))
            web.bind(("", server_port))
            web.listen()
        events = EventLog(counted.append)
        services = Services(
            wired.slot.namespace,
            POLICY,
            upstream=Servers((Server("127.0.0.1", port),)).of("tenant"),
            open_addresses=wired.open_addresses,
            events=events,
        )
        await stack.enter_async_context(services)
        yield Bed(wired, zone, events, services, counted)


async def test_a_name_opens_the_address_it_leads_to_for_its_rules_port(bed: Bed) -> None:
    with pytest.raises(ConnectionRefusedError):
        await bed.connect(SERVER, 443)
    await bed.ask("files.pypi.org")
    await bed.connect(SERVER, 443)
    with pytest.raises(ConnectionRefusedError):
        await bed.connect(SERVER, 80)
    with pytest.raises(ConnectionRefusedError):
        await bed.connect(OTHER_SERVER, 443)


async def test_what_the_firewall_denies_is_told_with_the_name_that_led_there(bed: Bed) -> None:
    await bed.ask("files.pypi.org")
    with pytest.raises(ConnectionRefusedError):
        await bed.connect(SERVER, 80)
    assert await bed.denial("unlisted") == Denial(
        protocol="tcp", destination=SERVER, port=80, name="files.pypi.org", rule="unlisted"
    )
    assert bed.counted == ["unlisted"]


async def test_a_denied_name_is_told_in_the_same_stream_and_asked_of_nobody(bed: Bed) -> None:
    assert (await bed.ask("secret.evil.example", "TXT")).rcode() == dns.rcode.NXDOMAIN
    assert (await bed.denial("dns-name")).name == "secret.evil.example"
    assert bed.zone.asked == []


async def test_names_are_asked_for_at_the_gateway_alone(bed: Bed) -> None:
    with socket_in(bed.wired.internet, socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((str(SERVER), 53))
        other.setblocking(False)
        with pytest.raises(OSError, match=r"refused|unreachable|permitted|No route"):
            await bed.ask("files.pypi.org", at=SERVER)
        with pytest.raises(BlockingIOError):
            other.recv(512)
    denial = await bed.denial("unlisted")
    assert (denial.protocol, denial.destination, denial.port) == ("udp", SERVER, 53)


async def test_the_gateway_serves_names_and_nothing_else(bed: Bed) -> None:
    with pytest.raises(ConnectionRefusedError):
        await bed.connect(GATEWAY, 22)
    assert (await bed.denial("gateway")).port == 22


async def test_what_is_sent_over_ipv6_is_told(bed: Bed) -> None:
    everybody = IPv6Address("ff02::1")
    bed.send_frame(0x86DD, b"\x60" + bytes(5) + b"\x3a\xff" + bytes(16) + everybody.packed)
    denial = await bed.denial("ipv6")
    assert (denial.protocol, denial.destination) == ("icmpv6", everybody)


async def test_what_is_sent_from_another_address_is_told(bed: Bed) -> None:
    header = b"\x45\0\0\x1c\0\0\0\0\x40\x11\0\0" + b"\x0a\0\0\1" + SERVER.packed
    total = sum(struct.unpack("!10H", header))
    checksum = 0xFFFF - (total & 0xFFFF) - (total >> 16)
    header = header[:10] + checksum.to_bytes(2) + header[12:]
    bed.send_frame(0x0800, header + b"\x9c\x40\0\x35\0\x08\0\0")
    denial = await bed.denial("spoofed")
    assert (denial.protocol, denial.destination, denial.port) == ("udp", SERVER, 53)


async def test_rules_are_replaced_for_names_too(bed: Bed) -> None:
    bed.zone.add(f"example.org 300 IN A {OTHER_SERVER}")
    policy = NetworkPolicy(
        mode=NetworkMode.RESTRICTED, allow=(Destination(domain="example.org", ports=WEB),)
    )
    bed.wired.enforce(policy)
    bed.services.replace(policy)
    assert (await bed.ask("files.pypi.org")).rcode() == dns.rcode.NXDOMAIN
    await bed.ask("example.org")
    await bed.connect(OTHER_SERVER, 443)


async def test_open_mode_answers_any_name_and_leads_nowhere_inside(bed: Bed) -> None:
    policy = NetworkPolicy(mode=NetworkMode.OPEN)
    bed.wired.enforce(policy)
    bed.services.replace(policy)
    bed.zone.add(f"example.org 300 IN A {OTHER_SERVER}")
    bed.zone.add("rebind.example 0 IN A 169.254.169.254")
    await bed.ask("example.org")
    await bed.connect(OTHER_SERVER, 80)
    assert not (await bed.ask("rebind.example")).answer
    denial = await bed.denial("dns-rebinding")
    assert denial.destination == IPv4Address("169.254.169.254")


async def test_a_capture_has_what_passed_and_what_was_denied(bed: Bed) -> None:
    limits = CaptureLimits(size_bytes=1 << 20, seconds=60)
    began_ns = time.time_ns()
    async with bed.services.capture(limits) as capture, aclosing(capture.pieces()) as pieces:
        header = await anext(pieces)
        await bed.ask("files.pypi.org")
        with pytest.raises(ConnectionRefusedError):
            await bed.connect(SERVER, 80)
        found = b""
        while not (b"\x05files\x04pypi\x03org" in found and SERVER.packed in found):
            found += await anext(pieces)
        capture.stop()
        found += b"".join([piece async for piece in pieces])
    assert struct.unpack("<IHHiIII", header) == (0xA1B23C4D, 2, 4, 0, 0, 65_535, 1)
    packets = records(found)
    assert all(len(packet) == length for _, packet, length in packets)
    assert all(began_ns <= when <= time.time_ns() for when, _, _ in packets)


async def test_a_capture_ends_at_its_size(bed: Bed) -> None:
    limits = CaptureLimits(size_bytes=1000, seconds=60)
    async with bed.services.capture(limits) as capture, aclosing(capture.pieces()) as pieces:
        file = await anext(pieces)
        for _ in range(20):
            await bed.ask("secret.evil.example")
        async for piece in pieces:
            file += piece
    assert 500 < len(file) <= 1000
    assert records(file[24:])


async def test_a_capture_ends_with_its_time(bed: Bed) -> None:
    limits = CaptureLimits(size_bytes=1 << 20, seconds=0.01)
    async with asyncio.timeout(30), bed.services.capture(limits) as capture:
        assert [piece async for piece in capture.pieces()]


async def test_a_capture_has_room_in_the_kernel_for_what_comes_between_two_looks(bed: Bed) -> None:
    limits = CaptureLimits(size_bytes=1 << 20, seconds=60)
    async with bed.services.capture(limits) as capture:
        room = capture._source.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    assert room >= 2 << 20


async def test_one_capture_runs_at_a_time(bed: Bed) -> None:
    limits = CaptureLimits(size_bytes=1 << 20, seconds=60)
    async with bed.services.capture(limits):
        with pytest.raises(ConflictError) as refused:
            async with bed.services.capture(limits):
                pass
    assert refused.value.error_code == "capture_running"
    async with bed.services.capture(limits):
        pass


async def test_a_capture_ends_when_the_slot_does(bed: Bed) -> None:
    limits = CaptureLimits(size_bytes=1 << 20, seconds=60)
    async with bed.services.capture(limits) as capture, aclosing(capture.pieces()) as pieces:
        await anext(pieces)
        await bed.services.__aexit__(None, None, None)
        assert [piece async for piece in pieces] == []


async def test_a_slot_that_is_gone_has_no_services() -> None:
    with pytest.raises(HostError) as failed:
        async with Services(
            Namespace.named("vmpool-test-none"),
            POLICY,
            upstream=Servers().of("tenant"),
            open_addresses=None,  # type: ignore[arg-type]
            events=EventLog(lambda _: None),
        ):
            pass
    assert failed.value.error_code == "network_failed"


def records(file: bytes) -> list[tuple[int, bytes, int]]:
    """Return time, bytes and whole length of each packet in a file behind its header."""
    found = []
    while file:
        seconds, nanoseconds, kept, length = struct.unpack_from("<IIII", file)
        found.append((seconds * 10**9 + nanoseconds, file[16 : 16 + kept], length))
        file = file[16 + kept :]
    return found
