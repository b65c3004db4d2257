"""Trunk: what the slots of a host share: the router that joins them, and the uplink to the host.

Made when the first slot is wanted, so that a host whose sandboxes have no network changes nothing
of the machine's. What a server that was killed has made, the next one finds again by its names.
Everything here blocks for some tens of milliseconds.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmpool.errors import HostError
from vmpool.network import firewall, links, namespace, plan
from vmpool.network.addressing import Range
from vmpool.network.namespace import HOME, Namespace

if TYPE_CHECKING:
    from collections.abc import Iterator


_TABLES = "vmpool_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trunk:
    """Names and addresses of all that one host instance makes in the kernel.

    Attributes:
        tag: In each name, so that two instances know their own.
        home: The namespace whose links lead out, as a rule the server's own.
    """

    tag: str
    within: Range
    home: Namespace = HOME

    @property
    def router(self) -> Namespace:
        """The namespace that joins the slots."""
        return Namespace.named(f"vmpool-{self.tag}-router")

    @property
    def uplink(self) -> str:
        """The link to it, in the server's own namespace."""
        return f"{plan.UPLINKS}{self.tag}"  # 13 of the 15 characters that a link's name may have

    @property
    def table(self) -> str:
        """The rules in the server's own namespace."""
        return f"{_TABLES}{self.tag}"

    def slot(self, number: int) -> Namespace:
        """Return where a slot is, whether there is one or not."""
        return Namespace.named(f"vmpool-{self.tag}-{number}")

    def slots(self) -> Iterator[int]:
        """Yield the numbers of the slots that there are, or that are left of a broken making."""
        for found in namespace.named(f"vmpool-{self.tag}-"):
            number = found.name.rpartition("-")[2]
            if number.isdecimal():
                yield int(number)

    @property
    def stands(self) -> bool:
        """Whether all of it is there."""
        return self.router.exists and links.exists(self.home, self.uplink)

    def raise_up(self) -> None:
        """Make what is not there. *Idempotent.*

        Raises:
            HostError: `network_unavailable`; this process may not, or the range is taken.
                `network_failed`; the kernel refused.
        """
        require()
        if not self.stands:
            self.take_down()
            try:
                links.require_free(self.home, self.within)
                namespace.create(self.router.name)
                # The rules are there before the first link over which something could come.
                firewall.apply(self.router, plan.router())
                self._guard([])
                links.make_router(self.home, self.router, self.uplink, self.within)
            except BaseException:
                self.take_down()
                raise
        closed = sorted({*self._closed(), *links.not_forwarding(self.home, self.uplink)})
        self._guard(closed)
        links.forward_through(self.home, closed)

    def take_down(self) -> None:
        """Remove all of it but the slots. *Idempotent.*

        Raises:
            HostError: `network_failed`; the kernel refused.
        """
        # The namespace goes last: as long as it is there, something may be left.
        if not links.exists(self.home, self.uplink) and not self.router.path.exists():
            return
        links.remove(self.home, self.uplink)
        if closed := self._closed():
            self._pass_on(closed)
        firewall.remove(self.home, self.table)
        namespace.remove(self.router)

    def _pass_on(self, closed: list[str]) -> None:
        """Have links forward no more, or another host instance see to it that they do not."""
        others = [each for each in firewall.tables(self.home, _TABLES) if each != self.table]
        if not others:
            links.forward_no_more(self.home, closed)
            return
        names = ", ".join(f'"{name}"' for name in closed)
        firewall.apply(self.home, f"add element inet {others[0]} closed {{ {names} }}\n")

    def _guard(self, closed: list[str]) -> None:
        script = plan.home(
            self.table, uplink=self.uplink, within=self.within.network, closed=closed
        )
        firewall.apply(self.home, script)

    def _closed(self) -> list[str]:
        """Return the links that forward for our sake alone."""
        return firewall.elements(self.home, self.table, "closed")


def require() -> None:
    """Make sure that this process may make networks.

    Raises:
        HostError: `network_unavailable`, with a remedy.
    """
    if os.geteuid() != 0:
        raise HostError(
            "sandboxes have no network here: vmpool does not run as root",
            code="network_unavailable",
            remedy="run the server as root, or use mode none",
        )
    if not os.access(links.TUN, os.R_OK | os.W_OK):
        raise HostError(
            f"sandboxes have no network here: {links.TUN} cannot be used",
            code="network_unavailable",
            remedy="modprobe tun, or give this container the device",
        )
    firewall.require()
