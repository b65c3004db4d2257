"""Egress: what a sandbox may send to whom, as a value.

What it means to the kernel and to the resolver is decided in `network`; this checks form only. The
same members stand in requests, answers and the journal.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network
from typing import Any

from vmpool.errors import InvalidRequestError

RULES_MOST = 256
"""Of one policy, allowing and denying ones together."""

RANGES_MOST = 32
"""Ports and ranges of ports in one rule."""


class NetworkMode(StrEnum):
    """How a sandbox is connected."""

    NONE = "none"
    """Not at all."""
    RESTRICTED = "restricted"
    """To what is allowed."""
    OPEN = "open"
    """To all but what is denied or protected."""


class Protocol(StrEnum):
    """What a rule is about; `any` without ports is all of IP, with ports both of the others."""

    TCP = "tcp"
    UDP = "udp"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports from `first` to `last`, both included."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last <= 65535:
            raise _invalid(f"{self.first}-{self.last} is no range of ports")

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"

    @classmethod
    def parse(cls, text: str | int) -> Ports:
        """Return the ports that `443`, `"443"` or `"8000-8100"` mean.

        Raises:
            InvalidRequestError: `invalid_network`.
        """
        first, dash, last = str(text).partition("-")
        numbers = (first, last if dash else first)
        if not all(number.isascii() and number.isdecimal() for number in numbers):
            raise _invalid(f"{text!r} is no port")
        if any(len(number) > 5 for number in numbers):
            raise _invalid(f"{text!r} is no port")
        return cls(int(numbers[0]), int(numbers[1]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """What one rule allows or denies.

    Attributes:
        cidr: Addresses; `None` when `domain` says which.
        domain: A name, or `*.` before one for all below it, in the form of `network.names`.
        ports: Empty for all.
    """

    cidr: IPv4Network | None = None
    domain: str | None = None
    protocol: Protocol = Protocol.ANY
    ports: tuple[Ports, ...] = ()

    def __post_init__(self) -> None:
        if (self.cidr is None) == (self.domain is None):
            raise _invalid("a rule has a cidr or a domain, and not both")
        if len(self.ports) > RANGES_MOST:
            raise _invalid(f"a rule has {RANGES_MOST} ranges of ports at most")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """What a sandbox may send and receive, in bytes a second; `None` for no limit."""

    up: int | None = None
    down: int | None = None

    def within(self, most: Bandwidth) -> Bandwidth:
        """Return this, or where it is more or has no limit, `most`."""
        return Bandwidth(up=_least(self.up, most.up), down=_least(self.down, most.down))


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPolicy:
    """What a sandbox may reach; what it denies goes before what it allows.

    Protected addresses, those of the host, of other sandboxes and of private networks, are reached
    only by an allowed CIDR that lies within them.
    """

    mode: NetworkMode = NetworkMode.NONE
    allow: tuple[Destination, ...] = ()
    deny: tuple[Destination, ...] = ()
    bandwidth: Bandwidth = Bandwidth()

    def __post_init__(self) -> None:
        if len(self.allow) + len(self.deny) > RULES_MOST:
            raise _invalid(f"a policy has {RULES_MOST} rules at most")


UNCONNECTED = NetworkPolicy()
"""No network at all."""


def members(policy: NetworkPolicy) -> dict[str, Any]:
    """Return a policy as JSON has it."""
    return {
        "mode": policy.mode.value,
        "allow": [_rule_members(rule) for rule in policy.allow],
        "deny": [_rule_members(rule) for rule in policy.deny],
        "bandwidth": {"up": policy.bandwidth.up, "down": policy.bandwidth.down},
    }


def policy(members: dict[str, Any]) -> NetworkPolicy:
    """Return the policy of JSON members whose types are right; what is left out is the default.

    Raises:
        InvalidRequestError: `invalid_network`.
    """
    bandwidth = members.get("bandwidth") or {}
    return NetworkPolicy(
        mode=NetworkMode(members.get("mode", NetworkMode.NONE)),
        allow=tuple(_rule(rule) for rule in members.get("allow", ())),
        deny=tuple(_rule(rule) for rule in members.get("deny", ())),
        bandwidth=Bandwidth(up=bandwidth.get("up"), down=bandwidth.get("down")),
    )


def text(policy: NetworkPolicy) -> str:
    """Return a policy as the journal has it; empty for `UNCONNECTED`."""
    return "" if policy == UNCONNECTED else json.dumps(members(policy))


def parse(text: str) -> NetworkPolicy:
    """Return the policy that the journal has."""
    return policy(json.loads(text)) if text else UNCONNECTED


def _rule_members(rule: Destination) -> dict[str, Any]:
    where = {"domain": rule.domain} if rule.cidr is None else {"cidr": str(rule.cidr)}
    ports = [each.first if each.first == each.last else str(each) for each in rule.ports]
    return {**where, "protocol": rule.protocol.value, "ports": ports}


def _rule(members: dict[str, Any]) -> Destination:
    cidr, domain = members.get("cidr"), members.get("domain")
    try:
        network = None if cidr is None else IPv4Network(cidr)
    except ValueError as err:
        raise _invalid(f"{cidr!r} is no CIDR of IPv4: {err}") from err
    return Destination(
        cidr=network,
        domain=domain,
        protocol=Protocol(members.get("protocol", Protocol.ANY)),
        ports=tuple(Ports.parse(each) for each in members.get("ports", ())),
    )


def _least(*limits: int | None) -> int | None:
    return min((each for each in limits if each is not None), default=None)


def _invalid(message: str) -> InvalidRequestError:
    return InvalidRequestError(message, code="invalid_network")
