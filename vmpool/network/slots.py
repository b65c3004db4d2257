"""Slots: what a sandbox's network needs of the kernel, made ahead and used once.

A slot is a network namespace with the guest's link, a link to the router and rules. It is taken,
and given back; what is given back is removed, and another one made: nothing of one sandbox's
connections meets the next one. Numbers, and with them addresses outside, come round as late as they
can.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from typing import TYPE_CHECKING

from vmpool.cancellation import uninterrupted
from vmpool.chores import Chores
from vmpool.egress import Bandwidth
from vmpool.errors import HostError, PoolBusyError
from vmpool.network import firewall, links, namespace, plan, tracking

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv4Network

    from vmpool.egress import NetworkPolicy
    from vmpool.network.namespace import Namespace
    from vmpool.network.trunk import Trunk

log = logging.getLogger(__name__)

UNBOUNDED = Bandwidth()

CLOSE_TIMEOUT = 30.0
"""Seconds for the end of what is under way."""


class Slot:
    """One sandbox's place in the network.

    Attributes:
        number: Names it, among the slots of its host.
        address: What it is known by outside.
    """

    def __init__(
        self,
        number: int,
        namespace: Namespace,
        address: IPv4Address,
        tap: int,
        *,
        closed: tuple[IPv4Network, ...] = (),
        most: Bandwidth = UNBOUNDED,
    ) -> None:
        self.number = number
        self.namespace = namespace
        self.address = address
        self._tap = tap
        self._closed = closed
        self._most = most
        self._policy: NetworkPolicy | None = None
        self._bandwidth: Bandwidth | None = Bandwidth()  # `None` while it is not known

    @property
    def tap(self) -> int:
        """Descriptor of the guest's link, which stays the slot's; -1 when somebody else has it."""
        return self._tap

    def enforce(self, policy: NetworkPolicy) -> None:
        """Put a policy in place, at once and whole. *Idempotent.* Blocks.

        Raises:
            HostError: `network_failed`; the one before is in place.
        """
        mark = 1 + secrets.randbelow(2**31 - 1)
        if self._policy is None:
            script = plan.slot(policy, address=self.address, mark=mark, closed=self._closed)
        else:
            before = self._policy
            script = plan.replacement(policy, mark=mark, before=before, closed=self._closed)
        try:
            bandwidth = policy.bandwidth.within(self._most)
            if bandwidth != self._bandwidth:
                links.limit(self.namespace, bandwidth)
            # Last, for it is done whole or not at all.
            firewall.apply(self.namespace, script)
        except BaseException:
            self._restore_bandwidth()
            raise
        self._policy, self._bandwidth = policy, bandwidth

    def recall(self, policy: NetworkPolicy) -> None:
        """Note whose rules are in place; who noted that may have died before it set the limits."""
        self._policy, self._bandwidth = policy, None

    def _restore_bandwidth(self) -> None:
        self._bandwidth = None
        if self._policy is not None:
            bandwidth = self._policy.bandwidth.within(self._most)
            links.limit(self.namespace, bandwidth)
            self._bandwidth = bandwidth

    def let_go(self) -> None:
        """Close the guest's link, which lives on with whom it was given to. *Idempotent.*"""
        if self._tap >= 0:
            os.close(self._tap)
            self._tap = -1


class Slots:
    """The slots of one host instance.

    Args:
        ready: How many to have made ahead, once one was wanted.
        closed: What no policy opens.
        most: Of bandwidth, for each.
    """

    def __init__(
        self,
        trunk: Trunk,
        *,
        ready: int,
        closed: tuple[IPv4Network, ...] = (),
        most: Bandwidth = UNBOUNDED,
    ) -> None:
        self._trunk = trunk
        self._ready_wanted = ready
        self._closed_networks = closed
        self._most = most
        self._ready: list[Slot] = []
        self._making = 0
        self._held: set[int] = set()
        self._next = 0
        self._raised = False  # by this server, with the rules that it knows
        self._closed = False
        self._raising = asyncio.Lock()
        self._chores = Chores("network slots")

    @property
    def ready(self) -> int:
        """How many are made and nobody's."""
        return len(self._ready)

    @property
    def held(self) -> int:
        """How many are taken."""
        return len(self._held) - len(self._ready) - self._making

    async def take(self) -> Slot:
        """Return a slot that has no rules yet, and no guest; the caller gives it back.

        To make another takes ten times as long as to use one: the caller has that done by `stock`,
        once whoever waits for this one waits no more.

        Raises:
            HostError: `network_unavailable`, `network_failed`.
            CapacityError: `network_full`; all of the range's addresses are taken.
        """
        return self._ready.pop() if self._ready else await self._make()

    def give_back(self, slot: Slot) -> None:
        """Have a slot removed, behind the caller's back, for it takes its time. *Idem.*"""
        slot.let_go()
        self._chores.begin(self._remove(slot))

    async def adopt(self, number: int, policy: NetworkPolicy) -> Slot:
        """Return a slot that another server has made and that a machine is connected to.

        Args:
            policy: What is in place in it.

        Raises:
            HostError: `network_failed`; it is not there, or not connected any more.
                `network_unavailable`, `network_failed`; the trunk could not be brought up to date.
        """
        found = self._trunk.slot(number)

        def stands() -> bool:
            there = self._trunk.stands and found.exists
            return there and links.exists(found, plan.TAP) and links.exists(found, plan.UP)

        if number in self._held or not await asyncio.to_thread(stands):
            raise HostError(f"network slot {number} is gone", code="network_failed")
        await self._raise_up()
        address = self._trunk.within.slot(number)
        slot = Slot(number, found, address, -1, closed=self._closed_networks, most=self._most)
        slot.recall(policy)
        self._held.add(number)
        return slot

    async def reap(self) -> int:
        """Remove what nobody has, of a server that is gone; return how many slots that were."""
        found = await asyncio.to_thread(lambda: list(self._trunk.slots()))
        stray = [number for number in found if number not in self._held]
        for number in stray:
            await uninterrupted(asyncio.to_thread(self._clear, number))
        await uninterrupted(self._take_down())
        return len(stray)

    async def close(self) -> None:
        """Remove what nobody has taken, and all of it when nobody has a slot. *Idempotent.*

        Slots that are taken stay, for who adopts them.
        """
        self._closed = True
        await uninterrupted(self._wind_up())

    async def _wind_up(self) -> None:
        await self._chores.done(within=CLOSE_TIMEOUT)
        while self._ready:
            await self._remove(self._ready.pop())
        if self._raised:
            await self._take_down()

    def stock(self) -> None:
        """Have as many made ahead as there should be, behind the caller's back."""
        missing = self._ready_wanted - len(self._ready) - self._making
        for _ in range(0 if self._closed else missing):
            self._making += 1
            self._chores.begin(self._add())

    async def _add(self) -> None:
        try:
            slot = await self._make()
        except (HostError, PoolBusyError) as err:
            log.warning("no network slot could be made ahead: %s", err)
        else:
            self._ready.append(slot)
        finally:
            self._making -= 1

    async def _make(self) -> Slot:
        await self._raise_up()
        number = self._claim_number()
        making = asyncio.ensure_future(asyncio.to_thread(self._furnish, number))
        try:
            return await uninterrupted(making)
        except BaseException:
            # Cancelled just when it was made: nobody will have it.
            if not making.cancelled() and making.exception() is None:
                await uninterrupted(self._remove(making.result()))
            else:
                self._held.discard(number)
            raise

    async def _raise_up(self) -> None:
        """Have the trunk stand with the rules of this server, whoever made it. *Idempotent.*"""
        await uninterrupted(self._raise())

    async def _raise(self) -> None:
        async with self._raising:
            if not self._raised:
                await asyncio.to_thread(self._trunk.raise_up)
                self._raised = True

    async def _take_down(self) -> None:
        """Remove the trunk, unless somebody has a slot. *Idempotent.*"""
        async with self._raising:
            if not self._held:
                self._raised = False
                await asyncio.to_thread(self._trunk.take_down)

    def _claim_number(self) -> int:
        most = self._trunk.within.slots_most
        for step in range(most):
            number = (self._next + step) % most
            if number not in self._held:
                self._held.add(number)
                self._next = number + 1
                return number
        raise PoolBusyError(
            f"all {most} addresses of {str(self._trunk.within.network)!r} are taken",
            code="network_full",
            remedy="set network.range to a larger network",
        )

    def _furnish(self, number: int) -> Slot:
        slot, address = self._trunk.slot(number), self._trunk.within.slot(number)
        if slot.path.exists():  # of a server that was killed, and that nobody reaped
            self._clear(number)
        try:
            namespace.create(slot.name)
            tap = links.make_slot(slot, self._trunk.router, number, self._trunk.within)
        except BaseException:
            self._clear(number)
            raise
        return Slot(number, slot, address, tap, closed=self._closed_networks, most=self._most)

    async def _remove(self, slot: Slot) -> None:
        if slot.number not in self._held:
            return
        slot.let_go()
        try:
            await asyncio.to_thread(self._clear, slot.number)
        except HostError as err:  # its number is not used again; the next start tries once more
            log.error("network slot %d is not gone: %s", slot.number, err)
            return
        self._held.discard(slot.number)

    def _clear(self, number: int) -> None:
        """Remove a slot and its link, whatever there is of it, and what the host keeps in mind.

        Its namespace goes last: by its name what is left is found, wherever this was cut short.
        """
        if self._trunk.router.exists:
            links.remove(self._trunk.router, plan.router_end(number))
        try:
            tracking.forget(self._trunk.home, self._trunk.within.slot(number))
        except HostError as err:  # they end by themselves, and nothing uses them
            log.warning("network slot %d leaves connections in mind: %s", number, err)
        namespace.remove(self._trunk.slot(number))
