"""Network bodies: the JSON objects about what a sandbox may reach.

As `bodies`: the types are the interface, and check form only.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

Port = Annotated[int, Meta(ge=1, le=65535)]
PortRange = Annotated[str, Meta(pattern="^[0-9]{1,5}(-[0-9]{1,5})?$", max_length=11)]
Domain = Annotated[str, Meta(min_length=1, max_length=256)]
Cidr = Annotated[str, Meta(pattern=r"^[0-9.]{7,15}(/[0-9]{1,2})?$", max_length=18)]
Rate = Annotated[int, Meta(ge=1024, le=10**11)]


class NetworkRule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom a rule is about: a `cidr` of IPv4 or a `domain`, `*.` before it for all below it.

    Without `ports` it is about all; `any` without ports is about all of IP, as `ping` is.
    """

    cidr: Cidr | None = None
    domain: Domain | None = None
    protocol: Literal["tcp", "udp", "any"] = "any"
    ports: Annotated[list[Port | PortRange], Meta(max_length=32)] = []


class NetworkBandwidth(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bytes a second that a sandbox may send and receive; null for no limit."""

    up: Rate | None = None
    down: Rate | None = None


class Network(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a sandbox may reach: nothing, what `allow` names, or all that `deny` does not name.

    What is denied goes before what is allowed. The host, other sandboxes, private networks and
    metadata services are not reached unless a `cidr` within them is allowed.
    """

    mode: Literal["none", "restricted", "open"]
    allow: Annotated[list[NetworkRule], Meta(max_length=256)] = []
    deny: Annotated[list[NetworkRule], Meta(max_length=256)] = []
    bandwidth: NetworkBandwidth = NetworkBandwidth()


class NetworkTraffic(Struct, frozen=True, kw_only=True):
    """Packets and bytes since the sandbox's present machine was connected."""

    sent_packets: int
    sent_bytes: int
    received_packets: int
    received_bytes: int
    denied_packets: int
    denied_bytes: int


class NetworkAnswer(Struct, frozen=True, kw_only=True):
    """What a sandbox may reach; `traffic` is absent while it is not connected."""

    mode: Literal["none", "restricted", "open"]
    allow: list[NetworkRule]
    deny: list[NetworkRule]
    bandwidth: NetworkBandwidth
    traffic: NetworkTraffic | UnsetType = UNSET
