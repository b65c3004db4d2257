"""A slot that tests make by hand: rules, a guest on one side and an internet on the other.

The guest is a namespace with a guest's address behind a link that is called as a slot's tap is; the
internet is one with public addresses. Nothing of it touches the machine's own network.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool.egress import NetworkPolicy
from vmpool.model import GUEST_MAC
from vmpool.network import firewall, names, namespace, plan
from vmpool.network.addressing import GATEWAY, GATEWAY_MAC, GUEST
from vmpool.network.namespace import Namespace
from vmpool.network.slots import Slot

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OUTSIDE = IPv4Address("10.213.1.0")
"""What the slot is known by outside."""

SERVER = IPv4Address("192.0.2.1")
OTHER_SERVER = IPv4Address("192.0.2.2")
"""Who is on the internet."""


@dataclass
class WiredSlot:
    """A slot with both its ends."""

    slot: Slot
    guest: Namespace
    internet: Namespace
    policy: NetworkPolicy

    def enforce(self, policy: NetworkPolicy) -> None:
        """Put the rules of another policy in place."""
        self.slot.enforce(policy)
        self.policy = policy

    async def open_addresses(self, name: str, addresses: Sequence[IPv4Address], ttl: float) -> None:
        """Let the guest send to addresses by the domains that a name is among."""
        for index, each in plan.domain_sets(self.policy).items():
            if names.covers(self.policy.allow[index].domain or "", name):
                firewall.apply(self.slot.namespace, plan.renewal(each, addresses, int(ttl)))


@contextlib.contextmanager
def wired_slot(policy: NetworkPolicy) -> Iterator[WiredSlot]:
    """Make a slot with rules for the time of a block; nothing of it is left."""
    called = [f"vmpool-test-{os.getpid()}-{end}" for end in ("slot", "guest", "net")]
    with contextlib.ExitStack() as stack:
        made = []
        for name in called:
            made.append(namespace.create(name))
            stack.callback(namespace.remove, made[-1])
        slot, guest, internet = called
        _ip(
            slot,
            "link set lo up",
            f"link add tap address {GATEWAY_MAC} type veth"
            f" peer name eth0 address {GUEST_MAC} netns {guest}",
            f"link add name up type veth peer name eth0 netns {internet}",
            f"addr add {GATEWAY}/30 dev tap",
            f"addr add {OUTSIDE}/32 dev up",
            "link set tap up",
            "link set dev up up",
            "route add 192.0.2.0/24 dev up",
        )
        namespace.call_in(made[1], lambda: _set("ipv6/conf/all/disable_ipv6", 1))
        _ip(
            guest,
            f"addr add {GUEST}/30 dev eth0",
            "link set eth0 up",
            f"route add default via {GATEWAY}",
        )
        _ip(
            internet,
            f"addr add {SERVER}/24 dev eth0",
            f"addr add {OTHER_SERVER}/24 dev eth0",
            "link set eth0 up",
            f"route add {OUTSIDE}/32 dev eth0",
        )
        namespace.call_in(made[0], lambda: _set("ipv4/ip_forward", 1))
        found = Slot(0, made[0], OUTSIDE, -1)
        found.enforce(policy)
        yield WiredSlot(found, made[1], made[2], policy)


def _set(setting: str, value: int) -> None:
    """Set something of the namespace that the thread is in."""
    Path("/proc/sys/net", setting).write_text(str(value))


def _ip(name: str, *commands: str) -> None:
    subprocess.run(
        ["ip", "-netns", name, "-batch", "-"], input="\n".join(commands), text=True, check=True
    )
