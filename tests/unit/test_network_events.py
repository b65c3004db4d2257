"""A log keeps the newest denials, says what it lost, and is followed by a cursor."""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import aclosing
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.network import packet_log
from vmpool.network.events import Denial, EventLog
from vmpool.network.pacing import Bucket, PacedReader


def denial(name: str = "evil.example") -> Denial:
    return Denial(protocol="dns", destination=None, port=None, name=name, rule="dns-name")


def names_of(log: EventLog, cursor: int = 0) -> list[str | None]:
    return [event.denial.name for event in log.since(cursor).events]


def test_events_are_told_in_order_and_behind_a_cursor() -> None:
    counted: list[str] = []
    log = EventLog(counted.append)
    for name in ("a", "b", "c"):
        log.add(denial(name))
    first, second, third = log.since(0).events
    assert first.cursor < second.cursor < third.cursor
    assert names_of(log, first.cursor) == ["b", "c"]
    page = log.since(third.cursor)
    assert (page.events, page.cursor) == ((), third.cursor)
    assert counted == ["dns-name"] * 3


def test_the_oldest_make_way_and_are_counted() -> None:
    log = EventLog(lambda _: None, size=2)
    for name in ("a", "b", "c", "d"):
        log.add(denial(name))
    assert names_of(log) == ["c", "d"]
    assert log.since(0).lost == 2
    log.lose()
    assert log.since(0).lost == 3


def test_the_cursor_of_an_empty_log_asks_for_all_that_comes() -> None:
    log = EventLog(lambda _: None)
    cursor = log.since(0).cursor
    log.add(denial())
    assert names_of(log, cursor) == ["evil.example"]


async def test_a_follower_gets_what_is_there_and_what_comes_up_to_the_end() -> None:
    log = EventLog(lambda _: None)
    log.add(denial("a"))
    async with aclosing(log.follow(0)) as pages:
        assert [event.denial.name for event in (await anext(pages)).events] == ["a"]
        waiting = asyncio.ensure_future(anext(pages))
        await asyncio.sleep(0)
        assert not waiting.done()
        log.add(denial("b"))
        log.add(denial("c"))
        assert [event.denial.name for event in (await waiting).events] == ["b", "c"]
        log.add(denial("d"))
        log.close()
        log.add(denial("e"))
        assert [[event.denial.name for event in page.events] async for page in pages] == [["d"]]


async def test_two_followers_miss_nothing_of_each_other() -> None:
    log = EventLog(lambda _: None)

    async def follow() -> list[str | None]:
        return [event.denial.name async for page in log.follow(0) for event in page.events]

    async with asyncio.TaskGroup() as group:
        both = [group.create_task(follow()) for _ in range(2)]
        for name in ("a", "b", "c"):
            await asyncio.sleep(0)
            log.add(denial(name))
        await asyncio.sleep(0)
        log.close()
    assert [task.result() for task in both] == [["a", "b", "c"]] * 2


def netlink(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def logged(packet: bytes, prefix: bytes = b"unlisted\0") -> list[Denial]:
    body = bytes(4) + attribute(10, prefix) + attribute(9, packet)
    return list(packet_log.denials(netlink(0x400, body)))


def ipv4(protocol: int, rest: bytes, *, words: int = 5, fragment: int = 0) -> bytes:
    header = bytes([0x40 | words]) + bytes(5) + fragment.to_bytes(2) + bytes([64, protocol])
    addresses = bytes([0, 0, 10, 0, 0, 1, 192, 0, 2, 7])
    return header + addresses + bytes(words * 4 - 20) + rest


@pytest.mark.parametrize(
    ("packet", "protocol", "port"),
    [
        (ipv4(6, b"\x9c\x40\x01\xbb" + bytes(16)), "tcp", 443),
        (ipv4(17, b"\x9c\x40\x00\x35"), "udp", 53),
        (ipv4(6, b"\x9c\x40\x01\xbb", words=15), "tcp", 443),
        (ipv4(6, b"\x9c\x40\x01\xbb", fragment=100), "tcp", None),
        (ipv4(6, b"\x9c\x40\x01"), "tcp", None),
        (ipv4(1, b"\x08\x00\x00\x00"), "icmp", None),
        (ipv4(132, b"\x9c\x40\x01\xbb"), "132", None),
    ],
    ids=["tcp", "udp", "options", "fragment", "short", "icmp", "sctp"],
)
def test_a_logged_packet_says_where_it_was_to_go(
    packet: bytes, protocol: str, port: int | None
) -> None:
    assert logged(packet) == [
        Denial(
            protocol=protocol,
            destination=IPv4Address("192.0.2.7"),
            port=port,
            name=None,
            rule="unlisted",
        )
    ]


def test_a_packet_of_ipv6_says_so_too() -> None:
    packet = b"\x60" + bytes(5) + b"\x3a\x40" + bytes(16) + IPv6Address("ff02::2").packed
    [denied] = logged(packet, b"ipv6\0")
    assert (denied.protocol, denied.destination) == ("icmpv6", IPv6Address("ff02::2"))


@pytest.mark.parametrize(
    "packet", [b"", b"\x45", b"\x45" + bytes(18), b"\x60" + bytes(38), b"\x10" + bytes(60)]
)
def test_a_packet_without_an_address_is_nothing(packet: bytes) -> None:
    assert logged(packet) == []


@given(st.binary(max_size=200))
def test_any_datagram_is_survived(data: bytes) -> None:
    list(packet_log.denials(data))


@given(st.binary(max_size=140), st.binary(max_size=40))
def test_any_packet_is_survived(packet: bytes, prefix: bytes) -> None:
    assert len(logged(packet, prefix)) <= 1


@given(
    rate=st.floats(0.5, 1000),
    burst=st.integers(1, 50),
    steps=st.lists(st.floats(0, 5), max_size=50),
)
def test_a_bucket_gives_no_more_than_its_rate_and_a_burst(
    rate: float, burst: int, steps: list[float]
) -> None:
    now = 0.0
    bucket = Bucket(rate=rate, burst=burst, clock=lambda: now)
    taken = 0
    for step in steps:
        now += step
        while bucket.take():
            taken += 1
    assert taken <= burst + rate * now + 1e-6
    now += bucket.refill_seconds + 1e-9
    assert bucket.take()


async def test_a_reader_rests_when_its_bucket_is_empty_and_goes_on_later() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    ours.setblocking(False)
    now, read, pauses = 0.0, list[bytes](), list[float]()
    resumed = asyncio.Event()

    def take() -> bool:
        try:
            read.append(ours.recv(16))
        except BlockingIOError:
            return False
        resumed.set()
        return True

    with ours, theirs:
        bucket = Bucket(rate=1000.0, burst=4, clock=lambda: now)
        reader = PacedReader(ours.fileno(), take, bucket, on_pause=lambda: pauses.append(now))
        for number in range(6):
            theirs.send(bytes([number]))
        await resumed.wait()
        assert read == [b"\0", b"\1", b"\2", b"\3"]
        assert pauses == [0.0]
        resumed.clear()
        now = 1.0
        await resumed.wait()
        assert read[4:] == [b"\4", b"\5"]
        reader.close()
        reader.close()
