"""Connection: one sandbox's network, from the plug to the rules; what it does lies in its slot."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from vmpool.cancellation import uninterrupted
from vmpool.network import firewall, names, plan
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
        self._open_until: dict[tuple[str, IPv4Address], float] = {}
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
            kept = set(plan.domain_sets(policy).values())
            self._open_until = {
                key: until for key, until in self._open_until.items() if key[0] in kept
            }

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
        """Let the guest send to where a name led, as `resolver.Opening`."""
        async with self._changing:
            sets = plan.domain_sets(self.policy)
            wanted = {
                sets[index]
                for index, rule in enumerate(self.policy.allow)
                if rule.domain is not None and names.covers(rule.domain, name)
            }
            scripts = [self._opening(each, addresses, ttl) for each in sorted(wanted)]
            if script := "".join(scripts):
                await asyncio.to_thread(firewall.apply, self._slot.namespace, script)
            until = time.monotonic() + ttl
            for each in wanted:
                self._open_until |= {(each, address): until for address in addresses}

    def _opening(self, name: str, addresses: Sequence[IPv4Address], ttl: float) -> str:
        """Return the cheapest script by which addresses are in a set for so long, at least."""
        now, seconds = time.monotonic(), max(1, round(ttl))
        self._open_until = {key: at for key, at in self._open_until.items() if at > now - 1}
        new = [each for each in addresses if (name, each) not in self._open_until]
        late = [
            each
            for each in addresses
            if each not in new and self._open_until[name, each] < now + ttl - _SLACK
        ]
        script = plan.opening(name, new, seconds) if new else ""
        return script + (plan.renewal(name, late, seconds) if late else "")


_SLACK = 5.0
"""Seconds by which an address may close early rather than be renewed at each answer."""
