"""Connecting: sandboxes and their networks: when one gets which, and how it gets another.

The policy is the sandbox's and stays when its machine goes; the slot is the machine's. The journal
is told of another policy before the kernel is: a server that comes after a crash puts in place what
the journal says.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmpool import egress
from vmpool.clone import plug
from vmpool.egress import UNCONNECTED, NetworkMode, NetworkPolicy
from vmpool.errors import EngineError, VmpoolError
from vmpool.network.traffic import Traffic

if TYPE_CHECKING:
    from vmpool.clone import Clone
    from vmpool.network.events import EventLog
    from vmpool.network.network import Network
    from vmpool.sandbox import Sandbox
    from vmpool.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkStatus:
    """A sandbox's network at one moment.

    Attributes:
        traffic: Of its present machine; `None` when that is not connected.
    """

    policy: NetworkPolicy
    traffic: Traffic | None


class Connecting:
    """Connects the sandboxes of a host."""

    def __init__(self, network: Network, store: Store) -> None:
        self._network = network
        self._store = store

    async def connect(
        self, sandbox: Sandbox, clone: Clone, *, was: NetworkPolicy = UNCONNECTED
    ) -> None:
        """Give a new machine of a sandbox the network that its policy says.

        On failure and on cancellation it has none, or is to be killed.

        Args:
            was: The policy of the state that it was restored from, whose guest may think that it
                is connected.

        Raises:
            HostError: `network_unavailable`, `network_failed`.
            CapacityError: `network_full`.
            ConflictError: `nic_missing`; its template was made before there were networks.
            EngineError: The hypervisor failed.
        """
        policy = sandbox.claim.network
        if policy.mode is NetworkMode.NONE:
            if was.mode is not NetworkMode.NONE:
                await clone.leave()
            return
        try:
            await self._join(sandbox, clone, policy)
        finally:
            self._network.stock()

    async def _join(self, sandbox: Sandbox, clone: Clone, policy: NetworkPolicy) -> None:
        connection = await self._network.connect(policy, self.denials(sandbox), owner=sandbox.owner)
        try:
            await clone.join(connection)
        except BaseException:
            await connection.close()
            raise
        log.debug("sandbox=%s clone=%s has slot=%d", sandbox.id, clone.id, connection.number)

    async def reconnect(self, policy: NetworkPolicy, clone: Clone, *, owner: str) -> None:
        """Hold the network of a machine that was adopted, with the rules that the journal has.

        Args:
            owner: The tenant that has the sandbox.

        Raises:
            HostError: `network_failed`; it is gone.
            EngineError: `clone_unknown`, or the hypervisor failed.
        """
        if policy.mode is NetworkMode.NONE:
            await clone.leave()  # the other server may have been about to
            return
        known = await asyncio.to_thread(plug.read, clone.directory)
        if known is None:
            raise EngineError(f"clone {clone.id!r} was never connected", code="clone_unknown")
        log = self._network.new_log()
        clone.rejoin(await self._network.adopt(known.slot, policy, log, owner=owner))

    async def change(self, sandbox: Sandbox, policy: NetworkPolicy) -> None:
        """Give a sandbox another policy, also one that is paused. *Idempotent.*

        For connections that there are, too, and without a moment in which neither is in place.

        Raises:
            StoreError, DiskFullError: The journal could not take it; the one before is in place.
            VmpoolError: As `connect`; the one before is in place, or the sandbox has no network.
        """
        before = sandbox.claim.network
        await self._store.set_network(sandbox.id, egress.text(policy))
        sandbox.claim = replace(sandbox.claim, network=policy)
        try:
            if sandbox.has_machine:
                await self._apply(sandbox, policy, before)
        except VmpoolError:
            sandbox.claim = replace(sandbox.claim, network=before)
            await self._store.set_network(sandbox.id, egress.text(before))
            raise

    async def _apply(self, sandbox: Sandbox, policy: NetworkPolicy, before: NetworkPolicy) -> None:
        clone = sandbox.clone
        if clone.connection is None:
            await self.connect(sandbox, clone, was=before)
        elif policy.mode is NetworkMode.NONE:
            await clone.leave()
        else:
            await clone.connection.replace(policy)

    def denials(self, sandbox: Sandbox) -> EventLog:
        """Return what a sandbox's denials are noted in."""
        if sandbox.denials is None:
            sandbox.denials = self._network.new_log()
        return sandbox.denials

    async def status(self, sandbox: Sandbox) -> NetworkStatus:
        """Return what a sandbox may reach, and what passed.

        Raises:
            HostError: `network_failed`.
        """
        connection = sandbox.clone.connection if sandbox.has_machine else None
        traffic = None if connection is None else await connection.traffic()
        return NetworkStatus(policy=sandbox.claim.network, traffic=traffic)
