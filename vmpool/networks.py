"""Networks: what the sandboxes of a host may reach, as their owners see and change it."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from vmpool.errors import ConflictError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.auditing import Auditing
    from vmpool.connecting import Connecting, NetworkStatus
    from vmpool.egress import NetworkPolicy
    from vmpool.household import Household
    from vmpool.network.capture import Capture, CaptureLimits
    from vmpool.network.events import EventLog


class Networks:
    """The networks of all sandboxes of a host."""

    def __init__(self, connecting: Connecting, household: Household, auditing: Auditing) -> None:
        self._connecting = connecting
        self._household = household
        self._auditing = auditing

    async def show(self, id: str, *, owner: str) -> NetworkStatus:
        """Return what one sandbox of `owner` may reach, and what passed.

        Raises:
            NotFoundError: `sandbox_not_found`, `sandbox_ended`.
            HostError: `network_failed`.
        """
        return await self._connecting.status((await self._household.find(id, owner=owner)).sandbox)

    async def replace(self, id: str, policy: NetworkPolicy, *, owner: str) -> NetworkStatus:
        """Let another policy hold for one sandbox of `owner`, which may be paused. *Idempotent.*

        When cancelled after it began, it goes on.

        Raises:
            NotFoundError: `sandbox_not_found`, `sandbox_ended`.
            VmpoolError: As `Connecting.change`.
        """
        holding = await self._household.find(id, owner=owner)
        with self._auditing.noted("sandbox.network", id, owner, {"mode": policy.mode.value}):
            await self._household.finish(
                holding, lambda: self._connecting.change(holding.sandbox, policy)
            )
        return await self._connecting.status(holding.sandbox)

    async def denials(self, id: str, *, owner: str) -> EventLog:
        """Return what one sandbox of `owner` was denied; empty when it never had a network.

        Raises:
            NotFoundError: `sandbox_not_found`, `sandbox_ended`.
        """
        sandbox = (await self._household.find(id, owner=owner)).sandbox
        return self._connecting.denials(sandbox)

    @contextlib.asynccontextmanager
    async def capture(
        self, id: str, limits: CaptureLimits, *, owner: str
    ) -> AsyncIterator[Capture]:
        """Capture the packets of one sandbox of `owner` for the time of a block.

        Raises:
            NotFoundError: `sandbox_not_found`, `sandbox_ended`.
            ConflictError: `sandbox_paused`, `capture_running`; `network_none`, it has no network.
            HostError: `network_failed`.
        """
        holding = await self._household.find(id, owner=owner)
        connection = holding.running().clone.connection
        if connection is None:
            raise ConflictError(
                f"sandbox {id!r} has no network",
                code="network_none",
                remedy="give it one first",
            )
        self._auditing.note(owner, "sandbox.capture", id, {}, outcome="ok")
        async with connection.services.capture(limits) as capture:
            yield capture
