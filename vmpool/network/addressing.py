"""Addressing: who has which address, inside of a slot, between slots, and towards the host.

Every guest wakes with the same address; what makes its slot unique outside is the number that the
slot has. Nothing is made here.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING

from vmpool.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterable

GUEST = IPv4Address("169.254.77.2")
"""Every guest's address, in a network of two; the agent sets it as it boots."""

GATEWAY = IPv4Address("169.254.77.1")
"""The slot's end of that network, which is also whom guests ask for names."""

LINK_BITS = 30
"""Length of that network's prefix."""

GATEWAY_MAC = "02:76:6d:70:00:01"
"""The same in every slot, for guests keep in mind whom they spoke to."""

_FIRST = 256  # what is below is for the router
_LONGEST_PREFIX = 22  # leaves room for a few hundred slots


@dataclass(frozen=True, slots=True)
class Range:
    """The addresses of one host's slots and of the links between them.

    Attributes:
        network: Nobody else's on this host.
    """

    network: IPv4Network

    @classmethod
    def parse(cls, text: str) -> Range:
        """Return the range that a setting names.

        Raises:
            HostError: `invalid_settings`; it is no network of at least 1,024 addresses.
        """
        try:
            network = IPv4Network(text)
        except ValueError as err:
            raise _unfit(text, str(err)) from err
        if network.prefixlen > _LONGEST_PREFIX:
            raise _unfit(text, "it has fewer than 1024 addresses")
        return cls(network)

    @property
    def home(self) -> IPv4Address:
        """The server's end of the uplink."""
        return self.network[1]

    @property
    def router(self) -> IPv4Address:
        """The router's end of the uplink, and its address towards every slot."""
        return self.network[2]

    @property
    def slots_most(self) -> int:
        """How many slots there can be."""
        return self.network.num_addresses - _FIRST - 1  # the last one is a broadcast address

    def slot(self, number: int) -> IPv4Address:
        """Return the address that a slot is known by outside.

        Args:
            number: From 0 to `slots_most`, exclusively.
        """
        return self.network[_FIRST + number]


def closed(texts: Iterable[str]) -> tuple[IPv4Network, ...]:
    """Return the networks that a setting closes to all sandboxes.

    Raises:
        HostError: `invalid_settings`; one is no network.
    """
    found = []
    for text in texts:
        try:
            found.append(IPv4Network(text))
        except ValueError as err:
            raise HostError(
                f"network.closed has {text!r}: {err}",
                code="invalid_settings",
                remedy="name networks of IPv4, like 169.254.0.0/16",
            ) from err
    return tuple(found)


def _unfit(text: str, why: str) -> HostError:
    return HostError(
        f"network.range is {text!r}: {why}",
        code="invalid_settings",
        remedy="name a network that nobody else uses on this host, like 10.213.0.0/16",
    )
