"""Network: whether sandboxes of this host can be connected, by doing it, and how many times."""

from __future__ import annotations

import secrets
from ipaddress import IPv4Address
from pathlib import Path

from vmpool.doctor.finding import Finding, State
from vmpool.egress import NetworkMode, NetworkPolicy
from vmpool.errors import HostError
from vmpool.network import firewall, namespace, plan, trunk

GUESTS_ROOMY = 32
"""Guests at their limit that a host should have room for; few have more than some hundred."""

_TABLE = "connections"
_ROOM = "what guests and this host may have open together; a full table lets nobody connect"
_CONNECTIONS = Path("/proc/sys/net/netfilter/nf_conntrack_max")

_NAME = "networks"
_PURPOSE = "sandboxes that ask for a network have one, and rules that hold"


def examine() -> Finding:
    """Make a namespace with rules, and remove it. Blocks for some tens of milliseconds."""
    try:
        trunk.require()
        _try_rules()
    except HostError as err:
        return Finding(
            name=_NAME,
            purpose=_PURPOSE,
            state=State.DEGRADED,
            detail=err.message,
            remedy=err.remedy,
        )
    return Finding(
        name=_NAME, purpose=_PURPOSE, state=State.OK, detail="a namespace with rules for each"
    )


def examine_connections() -> Finding:
    """Read how many connections the kernel keeps in mind, of guests and of the host's own."""
    try:
        return connections(int(_CONNECTIONS.read_text()))
    except OSError:
        return connections(None)


def connections(most: int | None) -> Finding:
    """Judge the room for connections; `None` while the kernel tracks none."""
    if most is None:
        detail = "the kernel tracks none yet; ask again once a sandbox has a network"
        return Finding(name=_TABLE, purpose=_ROOM, state=State.OK, detail=detail)
    guests = most // plan.CONNECTIONS_MOST
    fits = guests >= GUESTS_ROOMY
    return Finding(
        name=_TABLE,
        purpose=_ROOM,
        state=State.OK if fits else State.DEGRADED,
        detail=f"{most} at most (nf_conntrack_max): those of {guests} guests that have all they"
        f" may, {plan.CONNECTIONS_MOST} each",
        remedy=""
        if fits
        else f"sysctl net.netfilter.nf_conntrack_max={GUESTS_ROOMY * plan.CONNECTIONS_MOST}",
    )


def _try_rules() -> None:
    tried = namespace.create(f"vmpool-doctor-{secrets.token_hex(4)}")
    try:
        policy = NetworkPolicy(mode=NetworkMode.OPEN)
        firewall.apply(tried, plan.slot(policy, address=IPv4Address("10.213.1.0"), mark=1))
    finally:
        namespace.remove(tried)
