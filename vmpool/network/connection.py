"""Connection: one sandbox's network, from the plug to the rules; what it does lies in its slot."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from vmpool.cancellation import uninterrupted
from vmpool.network import firewall, names, plan
from vmpool.network.openings import Openings
from vmpool.network.services import Services
from vmpool.network.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv4Network

    from vmpool.egress import NetworkPolicy
    from vmpool.network.events import EventLog
    from vmpool.network.slots import Slot, Slots
    from vmpool.network.upstream import Upstream


class Connection:
    """A slot that is somebody's. Made by `Network`; whoever holds it calls `close` or `release`.

    Attributes:
        policy: What is in place.
        events: What the guest was denied; the sandbox's, and outlives the connection.
        services: Names, denials and captures.
    """

    def __init__(
        self,
        slot: Slot,
        policy: NetworkPolicy,
        *,
        slots: Slots,
        protected: Sequence[IPv4Network],
        closed: Sequence[IPv4Network],
        upstream: Upstream,
        events: EventLog,
    ) -> None:
        self.policy = policy
        self.events = events
        self._slot = slot
        self._slots = slots
        self._changing = asyncio.Lock()
        self._openings = Openings()
        self.services = Services(
            slot.namespace,
            policy,
            protected=protected,
            closed=closed,
            upstream=upstream,
            open_addresses=self._open,
            events=events,
        )

    @property
    def number(self) -> int:
        """The slot's, by which another server finds it."""
        return self._slot.number

    @property
    def tap(self) -> int:
        """Descriptor of the guest's link, until it was `given`."""
        return self._slot.tap

    @property
    def address(self) -> IPv4Address:
        """What the sandbox is known by on this host; further out it has the host's."""
        return self._slot.address

    async def begin(self) -> None:
        """Put the policy in place and answer names; then the guest may be plugged in.

        Raises:
            HostError: `network_failed`; call `close`.
        """
        await asyncio.to_thread(self._slot.enforce, self.policy)
        await self.services.__aenter__()

    def given(self) -> None:
        """Let go of the tap, which the machine has its own descriptor of. *Idempotent.*"""
        self._slot.let_go()

    async def replace(self, policy: NetworkPolicy) -> None:
        """Put another policy in place, for connections that there are as well. *Idempotent.*

        There is no moment without rules. Once begun, it is done also when cancelled.

        Raises:
            HostError: `network_failed`; the one before is in place.
        """
        await uninterrupted(self._replace(policy))

    async def _replace(self, policy: NetworkPolicy) -> None:
        async with self._changing:
            before = self.policy
            # Names first are only those that both allow: no answer opens what a rule is gone of.
            self.services.replace(policy)
            try:
                await asyncio.to_thread(self._slot.enforce, policy)
            except BaseException:
                self.services.replace(before)
                raise
            self.policy = policy
            self._openings = self._openings.only(plan.domain_sets(policy).values())

    async def traffic(self) -> Traffic:
        """Return what was counted.

        Raises:
            HostError: `network_failed`.
        """
        counted = await asyncio.to_thread(firewall.counters, self._slot.namespace, plan.TABLE)
        none = (0, 0)
        sent, received = counted.get("sent", none), counted.get("received", none)
        denied = counted.get("denied", none)
        return Traffic(
            sent_packets=sent[0],
            sent_bytes=sent[1],
            received_packets=received[0],
            received_bytes=received[1],
            denied_packets=denied[0],
            denied_bytes=denied[1],
        )

    async def release(self) -> None:
        """Leave the slot as it is, for who adopts it; names are answered no more. *Idempotent.*"""
        self._slot.let_go()
        await self.services.__aexit__(None, None, None)

    async def close(self) -> None:
        """Give the slot back; nothing gets through any more. *Idempotent*, even when cancelled.

        The machine must be gone, or have let go of its link: packets that are under way end here.
        """
        await uninterrupted(self._close())

    async def _close(self) -> None:
        try:
            await self.services.__aexit__(None, None, None)
        finally:
            self._slots.give_back(self._slot)

    async def _open(self, name: str, addresses: Sequence[IPv4Address], ttl: float) -> None:
        """Let the guest send to where a name led, as `resolver.Opening`.

        Raises:
            HostError: `network_failed`; the kernel refused, or too much is open already.
        """
        async with self._changing:
            # In a thread, with all that goes before: rules and addresses multiply.
            self._openings = await asyncio.to_thread(self._opened, name, addresses, ttl)

    def _opened(self, name: str, addresses: Sequence[IPv4Address], ttl: float) -> Openings:
        """Open addresses; return what is open then. Blocks."""
        sets = plan.domain_sets(self.policy)
        wanted = {
            sets[index]
            for index, rule in enumerate(self.policy.allow)
            if rule.domain is not None and names.covers(rule.domain, name)
        }
        script, openings = self._openings.extended(wanted, addresses, ttl, time.monotonic())
        if script:
            firewall.apply(self._slot.namespace, script)
        return openings
