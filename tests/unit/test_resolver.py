"""The resolver serves one guest over sockets, asks others on its behalf, and keeps its bounds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

import dns.asyncquery
import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from tests import dns_server
from tests.dns_server import Zone
from vmpool.errors import HostError
from vmpool.network import resolver, upstream
from vmpool.network.events import Denial, EventLog
from vmpool.network.permission import Permission
from vmpool.network.resolver import Resolver
from vmpool.network.upstream import Server, Servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

ALLOWED = Permission(names=("pypi.org", "*.pypi.org"), protected=(IPv4Network("10.0.0.0/8"),))


@dataclass
class Door:
    """Notes what is opened; fails when told to, and waits while it is held."""

    opened: list[tuple[str, list[str], float]] = field(default_factory=list)
    broken: bool = False

    async def __call__(self, name: str, addresses: Sequence[IPv4Address], ttl: float) -> None:
        if self.broken:
            raise HostError("no room", code="network_failed")
        self.opened.append((name, [str(address) for address in addresses], ttl))


def loopback(kind: socket.SocketKind) -> socket.socket:
    """Return a bound socket that does not block."""
    bound = socket.socket(socket.AF_INET, kind)
    bound.bind(("127.0.0.1", 0))
    bound.setblocking(False)
    if kind == socket.SOCK_STREAM:
        bound.listen()
    return bound


@contextlib.asynccontextmanager
async def serving_zone(zone: Zone) -> AsyncIterator[Server]:
    """Answer from a zone at one port, by datagram and by stream."""
    datagrams, listener = dns_server.loopback_sockets()
    port = datagrams.getsockname()[1]
    async with dns_server.serving(zone, datagrams, listener):
        yield Server("127.0.0.1", port)


@dataclass
class World:
    """A resolver, with an internet of its own behind it."""

    zone: Zone
    door: Door
    events: EventLog
    resolver: Resolver
    datagrams: int
    stream: int

    @property
    def denials(self) -> list[Denial]:
        return [event.denial for event in self.events.since(0).events]

    async def ask(self, name: str, kind: str = "A", *, payload: int = 1232) -> dns.message.Message:
        query = dns.message.make_query(name, kind, use_edns=0, payload=payload)
        return await dns.asyncquery.udp(query, "127.0.0.1", port=self.datagrams, timeout=20.0)

    async def ask_by_stream(self, name: str, kind: str = "A") -> dns.message.Message:
        query = dns.message.make_query(name, kind)
        return await dns.asyncquery.tcp(query, "127.0.0.1", port=self.stream, timeout=20.0)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """A resolver that lets its guest ask for PyPI."""
    zone, door, counted = Zone(), Door(), list[str]()
    zone.add("pypi.org 300 IN A 192.0.2.1")
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(serving_zone(zone))
        datagrams, listener = loopback(socket.SOCK_DGRAM), loopback(socket.SOCK_STREAM)
        ports = datagrams.getsockname()[1], listener.getsockname()[1]
        events = EventLog(counted.append)
        entered = await stack.enter_async_context(
            Resolver(
                datagrams=datagrams,
                listener=listener,
                permission=ALLOWED,
                upstream=Servers((server,)).of("tenant"),
                open_addresses=door,
                events=events,
            )
        )
        yield World(zone, door, events, entered, *ports)


def addresses_in(message: dns.message.Message) -> list[str]:
    return [record.to_text() for rrset in message.answer for record in rrset]


async def test_an_allowed_name_is_asked_for_answered_and_opened(world: World) -> None:
    reply = await world.ask("pypi.org")
    assert addresses_in(reply) == ["192.0.2.1"]
    assert world.zone.asked == [("pypi.org", "A", "udp")]
    assert world.door.opened == [("pypi.org", ["192.0.2.1"], 300 + resolver.GRACE_SECONDS)]
    assert world.resolver.name_of(IPv4Address("192.0.2.1")) == "pypi.org"
    assert world.denials == []


async def test_a_stream_serves_as_well(world: World) -> None:
    assert addresses_in(await world.ask_by_stream("pypi.org")) == ["192.0.2.1"]
    assert (await world.ask_by_stream("evil.example")).rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize("kind", ["A", "TXT", "ANY", "NULL"])
async def test_no_question_leaves_for_a_denied_name(world: World, kind: str) -> None:
    tunnel = "c2VjcmV0" * 7 + ".evil.example"
    assert (await world.ask(tunnel, kind)).rcode() == dns.rcode.NXDOMAIN
    assert (await world.ask_by_stream(tunnel, kind)).rcode() == dns.rcode.NXDOMAIN
    assert world.zone.asked == []
    assert world.door.opened == []
    told = {(each.rule, each.name) for each in world.denials}
    assert told == {("dns-name", tunnel.lower())}


async def test_a_guests_message_goes_nowhere_but_for_name_and_type(world: World) -> None:
    query = dns.message.make_query("PyPI.org", "A", use_edns=0, payload=4096)
    query.id = 4711
    query.flags |= dns.flags.CD | dns.flags.AD
    query.use_edns(
        0,
        dns.flags.DO,
        4096,
        options=[dns.edns.GenericOption(dns.edns.OptionType.make(65_001), b"secret")],
    )
    reply = await dns.asyncquery.udp(query, "127.0.0.1", port=world.datagrams, timeout=20.0)
    assert reply.question[0].name.to_text() == "PyPI.org."
    [wire] = world.zone.wires
    asked = dns.message.from_wire(wire)
    assert b"secret" not in wire
    assert asked.question[0].name.to_text() == "pypi.org."
    assert asked.flags == dns.flags.RD
    assert not asked.options
    assert not asked.ednsflags & dns.flags.DO


async def test_ids_and_ports_are_drawn_anew_for_each_question(world: World) -> None:
    for _ in range(4):
        await world.ask("pypi.org")
    assert len({wire[:2] for wire in world.zone.wires}) > 1


async def test_a_long_answer_is_fetched_by_stream(world: World) -> None:
    world.zone.cut.add("pypi.org")
    assert addresses_in(await world.ask("pypi.org")) == ["192.0.2.1"]
    assert [transport for _, _, transport in world.zone.asked] == ["udp", "tcp"]


async def test_what_does_not_fit_into_a_datagram_is_opened_when_a_stream_tells_it(
    world: World,
) -> None:
    lines = [f"pypi.org 300 IN A 192.0.2.{number}" for number in range(1, 33)]
    world.zone.add(*lines)
    reply = await world.ask("pypi.org", payload=512)
    assert reply.flags & dns.flags.TC
    assert world.door.opened == []
    reply = await world.ask_by_stream("pypi.org")
    assert len(addresses_in(reply)) == len(world.door.opened[0][1]) == 32


async def test_a_name_that_leads_inside_opens_nothing(world: World) -> None:
    world.zone.add("rebind.pypi.org 0 IN A 10.0.0.5")
    assert not (await world.ask("rebind.pypi.org")).answer
    assert world.door.opened == []
    [denial] = world.denials
    assert (denial.rule, denial.destination) == ("dns-rebinding", IPv4Address("10.0.0.5"))


async def test_a_later_answer_may_lead_elsewhere_but_not_inside(world: World) -> None:
    world.zone.add("pypi.org 0 IN A 192.0.2.2")
    await world.ask("pypi.org")
    world.zone.add("pypi.org 0 IN A 10.0.0.5")
    assert not (await world.ask("pypi.org")).answer
    assert [opened for _, opened, _ in world.door.opened] == [["192.0.2.2"]]


async def test_an_address_that_could_not_be_opened_is_not_told(world: World) -> None:
    world.door.broken = True
    reply = await world.ask("pypi.org")
    assert reply.rcode() == dns.rcode.SERVFAIL
    assert not reply.answer
    assert [each.rule for each in world.denials] == ["dns-unopened"]
    assert world.resolver.name_of(IPv4Address("192.0.2.1")) is None


async def test_rules_hold_from_when_they_are_replaced(world: World) -> None:
    await world.ask("pypi.org")
    world.resolver.permission = Permission(names=())
    assert (await world.ask("pypi.org")).rcode() == dns.rcode.NXDOMAIN
    world.resolver.permission = Permission(names=None)
    assert addresses_in(await world.ask("pypi.org")) == ["192.0.2.1"]


async def test_broken_messages_are_survived(world: World) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest:
        for wire in (b"", b"\0", b"\0" * 11, b"\xff" * 600, b"\0" * 20_000):
            guest.sendto(wire, ("127.0.0.1", world.datagrams))
    for wire in (b"", b"\0", b"\xff\xff" + b"x" * 100, b"\0\x0c" + b"\xff" * 12, b"\0\x05abc"):
        _, writer = await asyncio.open_connection("127.0.0.1", world.stream)
        writer.write(wire)
        writer.write_eof()
        writer.close()
        await writer.wait_closed()
    assert addresses_in(await world.ask("pypi.org")) == ["192.0.2.1"]


async def test_an_error_of_the_last_datagram_does_not_stop_the_next(world: World) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest:
        wire = dns.message.make_query("evil.example", "A").to_wire()
        guest.sendto(wire, ("127.0.0.1", world.datagrams))
    assert addresses_in(await world.ask("pypi.org")) == ["192.0.2.1"]


async def test_questions_that_wait_are_bounded(world: World) -> None:
    world.zone.silent.add("slow.pypi.org")
    wire = dns.message.make_query("slow.pypi.org", "A").to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest:
        guest.connect(("127.0.0.1", world.datagrams))
        guest.setblocking(False)
        for _ in range(resolver.UNDER_WAY_MOST + 3):
            guest.send(wire)
        loop = asyncio.get_running_loop()
        replies = [await loop.sock_recv(guest, 512) for _ in range(3)]
    assert {dns.message.from_wire(reply).rcode() for reply in replies} == {dns.rcode.SERVFAIL}
    assert [each.rule for each in world.denials] == ["dns-busy"] * 3
    for _ in range(resolver.UNDER_WAY_MOST):
        await world.zone.arrived.acquire()
    assert len(world.zone.asked) == resolver.UNDER_WAY_MOST


async def test_a_flood_is_left_to_the_kernel(world: World) -> None:
    wire = dns.message.make_query("evil.example", "A").to_wire()
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest:
        guest.connect(("127.0.0.1", world.datagrams))
        guest.setblocking(False)
        for _ in range(resolver.BURST // 50):
            for _ in range(50):
                guest.send(wire)
            for _ in range(50):
                await loop.sock_recv(guest, 512)
        sent = resolver.BURST
        answered = sent
        while answered == sent:  # faster than the bucket fills, however slow this machine is
            for _ in range(10):
                guest.send(wire)
            sent += 10
            await asyncio.sleep(2 / resolver.RATE)
            answered = sum(each.rule == "dns-name" for each in world.denials)
    assert any(each.rule == "dns-rate" for each in world.denials)
    assert addresses_in(await world.ask("pypi.org")) == ["192.0.2.1"]  # once there is some again


async def test_connections_beyond_the_bound_are_hung_up(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolver, "IDLE_SECONDS", 1000.0)  # not for having been idle
    async with asyncio.timeout(20), contextlib.AsyncExitStack() as stack:
        for _ in range(resolver.CONNECTIONS_MOST):
            _, writer = await asyncio.open_connection("127.0.0.1", world.stream)
            stack.push_async_callback(writer.wait_closed)
            stack.callback(writer.close)
        reader, writer = await asyncio.open_connection("127.0.0.1", world.stream)
        stack.push_async_callback(writer.wait_closed)
        stack.callback(writer.close)
        assert await reader.read() == b""


async def test_an_idle_connection_is_closed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolver, "IDLE_SECONDS", 0.05)
    reader, writer = await asyncio.open_connection("127.0.0.1", world.stream)
    try:
        writer.write(b"\0")
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    finally:
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()


async def test_leaving_ends_what_is_under_way(world: World) -> None:
    world.zone.silent.add("slow.pypi.org")
    wire = dns.message.make_query("slow.pypi.org", "A").to_wire()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as guest:
        guest.sendto(wire, ("127.0.0.1", world.datagrams))
    await world.zone.arrived.acquire()
    # the fixture leaves, and the test's end finds a task that was left behind


@pytest.mark.parametrize(
    ("text", "server"),
    [
        ("192.0.2.53", Server("192.0.2.53", 53)),
        ("192.0.2.53:5353", Server("192.0.2.53", 5353)),
        ("2001:db8::53", Server("2001:db8::53", 53)),
        ("[2001:db8::53]", Server("2001:db8::53", 53)),
        ("[2001:db8::53]:5353", Server("2001:db8::53", 5353)),
        ("fe80::1%eth0", Server("fe80::1%eth0", 53)),
    ],
)
def test_a_server_is_an_address_with_or_without_a_port(text: str, server: Server) -> None:
    assert Server.parse(text) == server


@pytest.mark.parametrize(
    "text", ["", "dns.example", "192.0.2.53:", "192.0.2.53:0", "1.2.3.4:65536"]
)
def test_what_is_no_server_is_refused(text: str) -> None:
    with pytest.raises(HostError) as refused:
        Server.parse(text)
    assert refused.value.error_code == "invalid_settings"


def test_the_hosts_own_servers_are_asked(tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(
        "# written by hand\nsearch example\nnameserver 192.0.2.53\nnameserver ::1\n"
        "nameserver\nnameserver nonsense\noptions edns0\n"
    )
    assert upstream.host_servers(file) == (Server("192.0.2.53"), Server("::1"))
    assert upstream.host_servers(tmp_path / "none") == ()


async def test_the_next_server_is_asked_when_one_has_no_answer(world: World) -> None:
    broken = Zone(rcode=dns.rcode.SERVFAIL)
    async with serving_zone(broken) as first, serving_zone(world.zone) as second:
        answer = await Servers((first, second)).ask("pypi.org", dns.rdatatype.A, "")
    assert answer is not None
    assert answer.rcode() == dns.rcode.NOERROR
    assert broken.names == world.zone.names == ["pypi.org"]


async def test_a_tenants_questions_keep_no_other_tenant_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upstream, "UNDER_WAY_MOST", 1)
    zone = Zone()
    async with serving_zone(zone) as server, asyncio.TaskGroup() as group:
        servers = Servers((server,))
        async with servers._lanes.one("somebody"):
            for owner in ["greedy"] * 4 + ["modest"]:
                ask = servers.of(owner).ask(f"{owner}.pypi.org", dns.rdatatype.A)
                group.create_task(ask)
                await asyncio.sleep(0)
            assert len(list(servers._lanes._waiting)) == 5
    assert len(zone.names) == 5
    assert "modest.pypi.org" in zone.names[:2]


async def test_the_last_word_counts_when_nobody_has_an_answer() -> None:
    async with serving_zone(Zone(rcode=dns.rcode.SERVFAIL)) as server:
        answer = await Servers((server,)).ask("pypi.org", dns.rdatatype.A, "")
    assert answer is not None
    assert answer.rcode() == dns.rcode.SERVFAIL
