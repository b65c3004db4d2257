"""Rule sets at random, and what real packets make of them, against a model of what they mean.

`VMPOOL_TEST_SEED` dices them anew.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import subprocess
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest

from tests.egress_model import allowed
from tests.wired_slot import WiredSlot, wired_slot
from vmpool import egress
from vmpool.egress import NetworkPolicy
from vmpool.network.namespace import Namespace, call_in, socket_in

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="networks are root's to make")

POLICIES = 60

ADDRESSES = tuple(
    map(IPv4Address, ("203.0.113.5", "203.0.113.9", "8.8.8.8", "10.1.2.3", "169.254.169.254"))
)
PORTS = (53, 443, 450)
NAME = "named.example"
NAMED = frozenset(ADDRESSES[1:2])
"""Where the name leads."""

CIDRS = ("0.0.0.0/0", "203.0.113.0/24", "203.0.113.9/32", "10.1.0.0/16", "10.1.2.3/32")
CIDRS_INSIDE = ("169.254.169.254/32", "10.0.0.0/8")

Packet = tuple[IPv4Address, str, int]

PACKETS = tuple((to, kind, port) for to in ADDRESSES for kind in ("tcp", "udp") for port in PORTS)


def rule(chance: random.Random, *, domains: bool) -> dict[str, Any]:
    """Return what one rule may say."""
    where: dict[str, Any] = {"cidr": chance.choice(CIDRS + CIDRS_INSIDE)}
    if domains and chance.random() < 0.3:
        where = {"domain": chance.choice((NAME, "*.example", "other.invalid"))}
    ports = chance.choice([[], [443], ["400-443"], [53, "440-460"]])
    return {**where, "protocol": chance.choice(["tcp", "udp", "any"]), "ports": ports}


def policy(chance: random.Random) -> NetworkPolicy:
    """Return any policy."""
    return egress.policy(
        {
            "mode": chance.choice(["restricted", "restricted", "open"]),
            "allow": [rule(chance, domains=True) for _ in range(chance.randrange(4))],
            "deny": [rule(chance, domains=False) for _ in range(chance.randrange(3))],
        }
    )


def meant(one: NetworkPolicy) -> set[Packet]:
    """Return the packets that are let through; a name leads only those who are allowed to ask."""
    known = tuple(r for r in one.allow if r.domain != "other.invalid")
    named = NetworkPolicy(mode=one.mode, allow=known, deny=one.deny)
    return {packet for packet in PACKETS if allowed(named, *packet, NAMED)}


class Internet:
    """Who listens outside, on all addresses, and what came."""

    def __init__(self, where: Namespace) -> None:
        self._stack = contextlib.ExitStack()
        self._datagrams = []
        for port in PORTS:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                one = self._stack.enter_context(socket_in(where, socket.AF_INET, kind))
                one.bind(("0.0.0.0", port))
                if kind is socket.SOCK_STREAM:
                    one.listen(1000)  # the kernel answers; nobody needs to accept
                else:
                    self._datagrams.append(one)

    def close(self) -> None:
        """Listen no more."""
        self._stack.close()

    def heard(self, wanted: set[str], timeout: float) -> set[str]:
        """Return the datagrams that came, once all that are wanted did, or time is up."""
        found: set[str] = set()
        end = time.monotonic() + timeout
        while not wanted <= found and (left := end - time.monotonic()) > 0:
            select.select(self._datagrams, [], [], left)
            found |= self._read()
        return found | self._read()

    def _read(self) -> set[str]:
        found = set()
        for one in self._datagrams:
            with contextlib.suppress(BlockingIOError):
                while True:
                    found.add(one.recv(200, socket.MSG_DONTWAIT).decode())
        return found


@pytest.fixture
def wired() -> Iterator[WiredSlot]:
    with wired_slot(egress.policy({"mode": "restricted"})) as found:
        ours = "".join(f"addr add {address}/32 dev lo\n" for address in ADDRESSES)
        batch(found.internet, f"link set lo up\n{ours}")
        batch(found.slot.namespace, "route add default dev up\n")
        yield found


def batch(where: Namespace, commands: str) -> None:
    line = ["ip", "-netns", where.name, "-batch", "-"]
    subprocess.run(line, input=commands, text=True, check=True)


def sent(packets: tuple[Packet, ...], number: int) -> set[Packet]:
    """Send each from the namespace that this is in; return the connections that were answered."""
    for to, kind, port in packets:
        if kind == "udp":
            one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            with one, contextlib.suppress(OSError):  # a refusal is no failure
                one.sendto(word(number, to, port).encode(), (str(to), port))
    connected = set()
    for to, kind, port in packets:
        if kind == "tcp":
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as one:
                one.settimeout(10.0)
                if one.connect_ex((str(to), port)) == 0:
                    connected.add((to, kind, port))
    return connected


def word(number: int, to: IPv4Address, port: int) -> str:
    return f"{number} {to} {port}"


async def test_packets_go_where_random_rules_say(wired: WiredSlot) -> None:
    seed = os.environ.get("VMPOOL_TEST_SEED", "5")
    chance = random.Random(f"rules {seed}")
    internet = Internet(wired.internet)
    let_through = 0
    with contextlib.closing(internet):
        for number in range(POLICIES):
            one = policy(chance)
            wired.enforce(one)
            await wired.open_addresses(NAME, tuple(NAMED), 600)
            right = meant(one)
            words = {word(number, to, port) for to, kind, port in right if kind == "udp"}
            connected = call_in(wired.guest, lambda n=number: sent(PACKETS, n))  # type: ignore[misc]
            said = f"seed {seed}, policy {number}: {one}"
            assert connected == {each for each in right if each[1] == "tcp"}, said
            # What came later than it was looked for would be of another number.
            assert internet.heard(words, 20.0) == words, said
            let_through += len(right)
    assert 0.1 < let_through / (POLICIES * len(PACKETS)) < 0.9
