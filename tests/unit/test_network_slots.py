"""Slots hold against a guest that sends whatever it likes, on the kernel of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import struct
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Network, IPv6Address
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests import internet as nets
from tests import slot_place
from tests.fake_host import until
from tests.internet import ALLOWED, HOME, OTHER, PORT, PRIVATE
from tests.slot_place import GONE, ONE, OPEN, Place
from tests.tap_guest import ICMP, ICMP6, UDP, TapGuest, checksum, echo_request
from vmpool import egress
from vmpool.egress import UNCONNECTED
from vmpool.errors import HostError
from vmpool.network import firewall, links, namespace, plan, tracking
from vmpool.network.addressing import GATEWAY, Range
from vmpool.network.namespace import Namespace
from vmpool.network.slots import Slots
from vmpool.network.trunk import Trunk

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="networks are root's to make")


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with slot_place.opened() as opened:
        yield opened


async def test_what_is_allowed_comes_from_the_hosts_address_and_is_answered(place: Place) -> None:
    async with place.guest(ONE) as (guest, _):
        guest.send_udp(ALLOWED, PORT, b"hello")
        assert await guest.received(lambda frame: frame.endswith(f"{HOME} hello".encode()))


@pytest.mark.parametrize(
    ("address", "port"),
    [(OTHER, PORT), (ALLOWED, nets.ALSO), (PRIVATE, PORT), (nets.METADATA, PORT), (HOME, PORT)],
)
async def test_what_is_not_allowed_is_not_heard(place: Place, address: str, port: int) -> None:
    async with place.guest(ONE) as (guest, _):
        guest.send_udp(address, port, b"denied")
        refused = await guest.received(lambda frame: frame[14 + 9] == ICMP)
        await place.settle(guest)
    assert refused[14 + 20 : 14 + 22] == bytes([3, 13])  # prohibited, RFC 1812
    assert "denied" not in place.texts


@pytest.mark.parametrize("address", [PRIVATE, nets.METADATA, HOME, str(GATEWAY), "10.213.0.1"])
async def test_what_is_protected_is_not_reached_by_an_open_network(
    place: Place, address: str
) -> None:
    async with place.guest(OPEN) as (guest, _):
        guest.send_udp(address, PORT, b"denied")
        guest.send_udp(OTHER, PORT, b"open")
        await place.settle(guest)
    assert "denied" not in place.texts
    assert "open" in place.texts


async def test_a_private_address_is_reached_when_it_is_named(place: Place) -> None:
    named = {**OPEN, "allow": [{"cidr": "10.9.9.0/24"}]}
    async with place.guest(named) as (guest, _):
        guest.send_udp(PRIVATE, PORT, b"named")
        await guest.received(lambda frame: b"named" in frame and frame[14 + 9] == UDP)


async def test_what_the_operator_closed_is_opened_by_no_rule(place: Place) -> None:
    named = {"mode": "restricted", "allow": [*ONE["allow"], {"cidr": "10.9.0.0/16"}]}
    closed = (IPv4Network("10.9.9.0/24"), IPv4Network(f"{PRIVATE}/32"))
    slots = Slots(place.trunk, ready=0, closed=closed)
    async with Place(place.internet, slots, place.trunk).guest(ONE) as (guest, slot):
        for policy in (named, {**OPEN, "allow": named["allow"]}):
            slot.enforce(egress.policy(policy))
            guest.send_udp(PRIVATE, PORT, b"denied")
            await place.settle(guest)
    await slots.close()
    assert "denied" not in place.texts


async def test_everything_that_is_allowed_names_nothing_that_is_protected(place: Place) -> None:
    everything = {"mode": "restricted", "allow": [{"cidr": "0.0.0.0/0"}]}
    async with place.guest(everything) as (guest, _):
        guest.send_udp(PRIVATE, PORT, b"denied")
        await place.settle(guest)
    assert "denied" not in place.texts


async def test_what_is_denied_goes_before_what_is_allowed(place: Place) -> None:
    both = {**OPEN, "deny": [{"cidr": f"{OTHER}/32", "ports": [PORT]}]}
    async with place.guest(both) as (guest, _):
        guest.send_udp(OTHER, PORT, b"denied")
        guest.send_udp(OTHER, nets.ALSO, b"another port")
        await place.settle(guest)
    assert "denied" not in place.texts
    assert "another port" in place.texts


async def test_a_guest_under_anothers_address_is_not_heard(place: Place) -> None:
    async with place.guest(OPEN) as (guest, _):
        for source in (OTHER, "169.254.77.1", "10.213.1.9", "10.213.0.2", "127.0.0.1"):
            guest.send_udp(ALLOWED, PORT, b"spoofed", source=source)
        guest.send_udp(ALLOWED, PORT, b"spoofed", mac="02:00:00:00:00:01")
        await place.settle(guest)
    assert "spoofed" not in place.texts


async def test_one_guest_does_not_reach_another(place: Place) -> None:
    named = {**OPEN, "allow": [{"cidr": "10.213.0.0/16"}]}
    async with place.guest(named) as (one, _), place.guest(named) as (other, slot):
        one.send_udp(str(slot.address), PORT, b"neighbour")
        await place.settle(one)
        await place.settle(other)
        assert not any(b"neighbour" in frame for frame in other.frames)


async def test_a_guest_is_not_reached_from_outside(place: Place) -> None:
    async with place.guest(OPEN) as (guest, slot):
        where = place.internet
        where.run(where.world, "ip", "route", "add", f"{slot.address}/32", "via", HOME)
        to = f"('{slot.address}', 5555)"
        knock = f"import socket; socket.socket(2, 2).sendto(b'knock', {to})"
        for sender in (where.world, where.home):
            where.run(sender, "python3", "-c", knock)
        await place.settle(guest)
        assert not any(b"knock" in frame for frame in guest.frames)


async def test_nothing_answers_ipv6(place: Place) -> None:
    source, to = "fe80::76:6dff:fe70:2", "ff02::1"
    body = struct.pack("!BBHHH", 128, 0, 0, 7, 1)  # echo request, RFC 4443
    pseudo = struct.pack("!II", len(body), ICMP6)
    whole = IPv6Address(source).packed + IPv6Address(to).packed + pseudo + body
    echo = body[:2] + struct.pack("!H", checksum(whole)) + body[4:]
    async with place.guest(OPEN) as (guest, _):
        guest.send_ipv6(to, ICMP6, echo, source=source)
        await place.settle(guest)
        assert not any(frame[12:14] == b"\x86\xdd" for frame in guest.frames)


async def test_fragments_are_judged_as_what_they_are_of(place: Place) -> None:
    text = b"x" * 64
    for port, wanted in ((PORT, True), (nets.ALSO, False)):
        async with place.guest(ONE) as (guest, _):
            datagram = struct.pack("!HHHH", 5555, port, 8 + len(text), 0) + text
            guest.send_ipv4(ALLOWED, UDP, datagram[:16], more=True, number=port)
            guest.send_ipv4(ALLOWED, UDP, datagram[16:], fragment=16, number=port)
            await place.settle(guest)
        assert (text.decode() in place.texts) is wanted
        place.internet.heard.clear()


async def test_an_echo_passes_only_by_a_rule_for_all_protocols(place: Place) -> None:
    every = {"mode": "restricted", "allow": [{"cidr": f"{ALLOWED}/32"}]}
    for policy, wanted in ((every, True), (ONE, False)):
        async with place.guest(policy) as (guest, _):
            guest.send_ipv4(ALLOWED, ICMP, echo_request(b"ping"))
            await place.settle(guest)
            answers = [frame for frame in guest.frames if frame[34:35] == b"\0"]
            assert any(b"ping" in frame for frame in answers if frame[23] == ICMP) is wanted


async def test_no_connection_outlives_the_rule_that_allowed_it(place: Place) -> None:
    async with place.guest(OPEN) as (guest, slot):
        guest.send_udp(OTHER, PORT, b"first")
        await guest.received(lambda frame: b"first" in frame)
        await asyncio.to_thread(slot.enforce, egress.policy(ONE))
        guest.send_udp(OTHER, PORT, b"later")
        # The other end of the connection goes on as well, and is not heard either.
        await place.settle(guest)
    assert "first" in place.texts
    assert "later" not in place.texts


async def test_rules_are_replaced_without_a_moment_of_open_network(place: Place) -> None:
    also = {**ONE, "allow": [*ONE["allow"], {"domain": "example.com"}]}
    async with place.guest(ONE) as (guest, slot):
        over, rounds, replaced = asyncio.Event(), 0, 0

        async def stream() -> None:
            nonlocal rounds
            while not over.is_set():
                for number in range(20):
                    source_port = 1024 + (20 * rounds + number) % 60_000
                    guest.send_udp(OTHER, PORT, b"denied", source_port=source_port)
                # What is allowed goes on meanwhile, and each answer of it comes.
                await place.settle(guest)
                guest.frames.clear()
                rounds += 1

        async with asyncio.TaskGroup() as group:
            group.create_task(stream())
            # As often as it takes a machine that has other things to do.
            for policy in itertools.cycle(map(egress.policy, (ONE, also))):
                await asyncio.to_thread(slot.enforce, policy)
                replaced += 1
                if replaced >= 20 and rounds > 5:
                    break
            over.set()
    assert "denied" not in place.texts


async def test_a_policy_that_cannot_be_put_in_place_leaves_the_one_before(place: Place) -> None:
    async with place.guest(ONE) as (guest, slot):
        # It takes the place of one whose sets it means to remove, and which never was.
        slot.recall(egress.policy(GONE))
        with pytest.raises(HostError) as caught:
            slot.enforce(egress.policy(OPEN))
        guest.send_udp(OTHER, PORT, b"denied")
        await place.settle(guest)
    assert caught.value.error_code == "network_failed"
    assert "denied" not in place.texts


async def test_a_link_that_goes_while_it_is_removed_is_gone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    routes_of = links._routes

    @contextlib.contextmanager
    def outdated() -> Iterator[SimpleNamespace]:
        with routes_of() as routes:
            yield SimpleNamespace(link=routes.link, link_lookup=lambda **_: [1 << 20])

    async with place.guest(ONE) as (_, slot):
        with monkeypatch.context() as patch:
            patch.setattr(links, "_routes", outdated)
            await asyncio.to_thread(links.remove, place.trunk.router, plan.router_end(slot.number))


def tracked(where: Namespace) -> int:
    """How many connections the kernel keeps in mind for a namespace."""
    count = Path("/proc/sys/net/netfilter/nf_conntrack_count")
    return int(namespace.call_in(where, count.read_text))


async def crowd(place: Place, guest: TapGuest, *, first_port: int) -> None:
    """Begin more connections than a guest may have."""
    for number in range(plan.CONNECTIONS_MOST // 2 + 100):
        for address in (ALLOWED, OTHER):
            guest.send_udp(address, PORT, b"crowd", source_port=first_port + number)
        if number % 50 == 0:
            await asyncio.sleep(0)
            guest.frames.clear()


async def test_no_guest_fills_the_hosts_table_of_connections(place: Place) -> None:
    async with place.guest(OPEN) as (guest, slot):
        for first_port in (10_000, 20_000):  # with rules that are replaced its slot counts anew
            await crowd(place, guest, first_port=first_port)
            await asyncio.to_thread(slot.enforce, egress.policy(OPEN))
        found = await asyncio.to_thread(tracked, place.internet.home)
    assert 1000 < found <= plan.CONNECTIONS_MOST + 1


async def test_the_host_forgets_the_connections_of_a_slot_that_is_gone(place: Place) -> None:
    async with place.guest(OPEN) as (guest, slot), place.guest(OPEN) as (other, _):
        await crowd(place, guest, first_port=10_000)
        other.send_udp(ALLOWED, PORT, b"beside")
        await place.settle(other)
        place.slots.give_back(slot)
        await until(lambda: place.slots.held == 1)
        assert await asyncio.to_thread(tracked, place.internet.home) == 1


async def test_questions_are_kept_in_mind_nowhere(place: Place) -> None:
    async with place.guest(OPEN) as (guest, slot):
        for number in range(100):
            guest.send_udp(str(GATEWAY), 53, b"question", source_port=2000 + number)
        await place.settle(guest)
        assert await asyncio.to_thread(tracked, slot.namespace) == 1  # that of the last word


async def test_slots_are_used_once_and_their_addresses_come_round_late(place: Place) -> None:
    first = await place.slots.take()
    place.slots.give_back(first)
    second = await place.slots.take()
    assert second.address != first.address
    place.slots.give_back(second)


async def test_slots_are_made_anew_when_their_taker_says_so(place: Place) -> None:
    slots = Slots(place.trunk, ready=1)
    taken = [await slots.take()]
    assert slots.ready == 0  # nothing is made beside what its taker waits for
    slots.stock()
    await until(lambda: slots.ready)
    taken.append(await slots.take())
    assert (slots.ready, slots.held) == (0, 2)
    for slot in taken:
        slots.give_back(slot)
    await slots.close()


async def test_a_slot_that_was_half_removed_or_half_made_is_found(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise ZeroDivisionError

    kept = await place.slots.take()
    with monkeypatch.context() as patched:
        patched.setattr(tracking, "forget", die)
        with pytest.raises(ZeroDivisionError):
            place.slots._clear(kept.number)
    assert list(place.trunk.slots()) == [kept.number]
    kept.let_go()
    later = Slots(place.trunk, ready=0)  # nobody has it reap
    other = await later.take()
    assert other.number == kept.number
    later.give_back(other)
    await later.close()
    place.slots.give_back(kept)


async def test_another_server_finds_its_slots_and_clears_the_others(place: Place) -> None:
    kept, lost = await place.slots.take(), await place.slots.take()
    for slot in (kept, lost):
        slot.enforce(UNCONNECTED)
    later = Slots(place.trunk, ready=0)
    tap = os.dup(kept.tap)  # as a machine has it
    adopted = await later.adopt(kept.number, UNCONNECTED)
    assert await later.reap() == 1
    assert list(place.trunk.slots()) == [kept.number]
    with pytest.raises(HostError):
        await later.adopt(lost.number, UNCONNECTED)
    later.give_back(adopted)
    await later.close()
    assert not place.trunk.stands
    os.close(tap)
    for slot in (kept, lost):
        slot.let_go()
        place.slots.give_back(slot)


async def test_the_rules_of_the_server_before_are_brought_up_to_date(place: Place) -> None:
    kept, home, table = await place.slots.take(), place.internet.home, place.trunk.table
    # As one wrote them that did not count connections.
    closed = f"add set inet {table} closed {{ type ifname; }}\n"
    firewall.apply(home, f"delete table inet {table}\nadd table inet {table}\n{closed}")
    later = Slots(place.trunk, ready=0)
    adopted = await later.adopt(kept.number, UNCONNECTED)
    assert "ct count over" in place.internet.run(home, "nft", "list", "table", "inet", table)
    later.give_back(adopted)
    await later.close()
    place.slots.give_back(kept)


async def test_what_was_taken_down_with_the_last_adopted_slot_is_raised_again(
    place: Place,
) -> None:
    kept = await place.slots.take()
    later = Slots(place.trunk, ready=0)
    later.give_back(await later.adopt(kept.number, UNCONNECTED))
    await until(lambda: not later.held)
    await later.reap()
    assert not place.trunk.stands
    async with Place(place.internet, later, place.trunk).guest(ONE) as (guest, _):
        await place.settle(guest)
    await later.close()
    place.slots.give_back(kept)


async def test_a_range_that_leads_elsewhere_is_refused(place: Place) -> None:
    place.internet.run(
        place.internet.home, "ip", "route", "add", "10.213.7.0/24", "via", nets.WORLD
    )
    with pytest.raises(HostError) as caught:
        await place.slots.take()
    assert caught.value.error_code == "network_unavailable"
    assert "10.213.7.0/24" in caught.value.message


async def test_two_servers_on_one_host_do_not_cut_each_other_off(place: Place) -> None:
    home = place.internet.home
    trunk = Trunk(tag=secrets.token_hex(3), within=Range.parse("10.214.0.0/16"), home=home)
    other = Place(place.internet, Slots(trunk, ready=0), trunk)
    async with place.guest(ONE) as (first, _), other.guest(ONE) as (second, _):
        await place.settle(first)
        await other.settle(second)
    await place.slots.close()
    async with other.guest(ONE) as (second, _):
        await other.settle(second)
    await other.slots.close()
    forwards = place.internet.run(home, "cat", "/proc/sys/net/ipv4/conf/out/forwarding")
    assert forwards.strip() == "0"


async def test_the_host_forwards_for_nobody_else(place: Place) -> None:
    where = place.internet
    async with place.guest(ONE) as (guest, _):
        await place.settle(guest)
        where.run(where.home, "ip", "link", "add", "side", "type", "veth")
        where.run(where.home, "ip", "addr", "add", "192.0.2.1/24", "dev", "side")
        where.run(where.home, "ip", "link", "set", "side", "up")
        where.run(where.world, "ip", "route", "add", "192.0.2.0/24", "via", HOME)
        knock = "import socket; socket.socket(2, 2).sendto(b'x', ('192.0.2.7', 9))"
        where.run(where.world, "python3", "-c", knock)
        statistics = where.run(where.home, "ip", "-s", "neigh", "show", "dev", "side")
        assert "192.0.2.7" not in statistics
        where.run(where.home, "ip", "link", "del", "side")
