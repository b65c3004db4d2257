"""Openings: the addresses that names have led one guest to, and until when they are open.

Pure: what the kernel is to be told comes back as a script. A guest has addresses made up by the
thousand, each memory of the kernel's and of this process, so there is a limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final, Self

from vmpool.errors import HostError
from vmpool.network import plan

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

MOST: Final = 4096
"""Addresses at one time, each counted once for every rule that opens it."""

_SLACK: Final = 5.0
"""Seconds by which an address may close early rather than be renewed at each answer."""


@dataclass(frozen=True, slots=True)
class Openings:
    """What is open.

    Attributes:
        until: Set of `plan` and address → when it closes in the kernel, on the caller's clock.
    """

    until: Mapping[tuple[str, IPv4Address], float] = field(default_factory=dict)

    def only(self, sets: Collection[str]) -> Self:
        """Return what is left of it when there are no other sets."""
        return type(self)({key: at for key, at in self.until.items() if key[0] in sets})

    def extended(
        self, sets: Collection[str], addresses: Sequence[IPv4Address], ttl: float, now: float
    ) -> tuple[str, Self]:
        """Return the cheapest script by which addresses are in sets for `ttl` seconds, or nearly.

        Returns:
            The script, empty when there is nothing to do, and what is open once it is in place.

        Raises:
            HostError: It would be too many; `network_failed`.
        """
        still = {key: at for key, at in self.until.items() if at > now - 1}
        asked = [(each, address) for each in sorted(sets) for address in addresses]
        if len(still.keys() | asked) > MOST:
            raise HostError(
                f"names led the guest to {MOST} addresses at one time", code="network_failed"
            )
        seconds = max(1, round(ttl))
        script = ""
        for each in sorted(sets):
            new = [at for at in addresses if (each, at) not in still]
            late = [at for at in addresses if still.get((each, at), now + ttl) < now + ttl - _SLACK]
            script += plan.opening(each, new, seconds) if new else ""
            script += plan.renewal(each, late, seconds) if late else ""
        # Who is not renewed closes when he would have: or asking often enough would close him.
        renewed = {key: now + ttl for key in asked if still.get(key, 0.0) < now + ttl - _SLACK}
        return script, type(self)(still | renewed)
