"""Model of egress: what a policy means, said once more, in the fewest words."""

from __future__ import annotations

from ipaddress import IPv4Address

from vmpool import egress
from vmpool.egress import NetworkPolicy, Protocol
from vmpool.network import plan


def covers(
    rule: egress.Destination,
    address: IPv4Address,
    protocol: str,
    port: int,
    opened: frozenset[IPv4Address] = frozenset(),
) -> bool:
    """Whether a rule is about a packet.

    Args:
        opened: Where names have led.
    """
    ports = any(each.first <= port <= each.last for each in rule.ports) or not rule.ports
    of = rule.protocol is Protocol.ANY or rule.protocol == protocol
    there = address in opened if rule.cidr is None else address in rule.cidr
    return there and of and ports


def allowed(
    policy: NetworkPolicy,
    address: IPv4Address,
    protocol: str,
    port: int,
    opened: frozenset[IPv4Address] = frozenset(),
) -> bool:
    """Whether a guest may begin a connection."""
    packet = (address, protocol, port, opened)
    if any(rule.cidr is not None and covers(rule, *packet) for rule in policy.deny):
        return False
    protected = any(address in network for network in plan.PROTECTED)
    for rule in policy.allow:
        inside = rule.cidr is not None and any(map(rule.cidr.subnet_of, plan.PROTECTED))
        if covers(rule, *packet) and (inside or not protected):
            return True
    return not protected and policy.mode is egress.NetworkMode.OPEN
