"""Permission: what a policy lets names be asked for, and which addresses they may lead to.

The firewall decides on packets by the same policy. This is the half that packets do not show: a
name that is asked for, and an answer that would lead it to an address of somebody else's (DNS
rebinding).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from vmpool.egress import NetworkMode, Protocol
from vmpool.network import names, plan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmpool.egress import Destination, NetworkPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """What a sandbox may learn of names.

    Attributes:
        names: Patterns of those it may ask for; `None` for any.
        denied_names: Patterns of those it may not, which go before.
        networks: Where a name may lead although it is protected.
        denied_networks: Where no name may lead, which go before.
        protected: Where no name may lead but by `networks`: the host, other sandboxes, private
            ranges.
    """

    names: tuple[str, ...] | None
    denied_names: tuple[str, ...] = ()
    networks: tuple[IPv4Network, ...] = ()
    denied_networks: tuple[IPv4Network, ...] = ()
    protected: tuple[IPv4Network, ...] = ()

    @classmethod
    def of(
        cls,
        policy: NetworkPolicy,
        *,
        protected: Iterable[IPv4Network] = (),
        closed: Iterable[IPv4Network] = (),
    ) -> Permission:
        """Return what a policy permits.

        Args:
            protected: Of this host, beyond `plan.PROTECTED`.
            closed: What no policy opens.
        """
        named = [rule.cidr for rule in policy.allow if rule.cidr]
        allowed = tuple(rule.domain for rule in policy.allow if rule.domain)
        return cls(
            names=None if policy.mode is NetworkMode.OPEN else allowed,
            denied_names=tuple(rule.domain for rule in policy.deny if rule.domain),
            networks=tuple(each for each in named if any(map(each.subnet_of, plan.PROTECTED))),
            denied_networks=(
                *closed,
                *(rule.cidr for rule in policy.deny if rule.cidr and _denies_all(rule)),
            ),
            protected=(*plan.PROTECTED, *protected),
        )

    def allows_name(self, name: str) -> bool:
        """Tell whether a name, as `names.canonical` returns it, may be asked for."""
        if any(names.covers(pattern, name) for pattern in self.denied_names):
            return False
        return self.names is None or any(names.covers(pattern, name) for pattern in self.names)

    def allows_answer(self, address: IPv4Address) -> bool:
        """Tell whether a name that may be asked for may lead to an address."""
        if any(address in network for network in self.denied_networks):
            return False
        if any(address in network for network in self.networks):
            return True
        return not any(address in network for network in self.protected)


def _denies_all(rule: Destination) -> bool:
    """Tell whether nothing of an address is left that a name might lead to."""
    return rule.protocol is Protocol.ANY and not rule.ports
