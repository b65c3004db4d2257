"""Network: whether sandboxes of this host can be connected, found out by doing it."""

from __future__ import annotations

import secrets
from ipaddress import IPv4Address

from vmpool.doctor.finding import Finding, State
from vmpool.egress import NetworkMode, NetworkPolicy
from vmpool.errors import HostError
from vmpool.network import firewall, namespace, plan, trunk

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


def _try_rules() -> None:
    tried = namespace.create(f"vmpool-doctor-{secrets.token_hex(4)}")
    try:
        policy = NetworkPolicy(mode=NetworkMode.OPEN)
        firewall.apply(tried, plan.slot(policy, address=IPv4Address("10.213.1.0"), mark=1))
    finally:
        namespace.remove(tried)
