"""Nursery: clones that go on where a sandbox was, each in a place of its own in a pool.

It has hypervisors wait for the next states of templates, and lets some clones at a time wake. It
decides nothing about sandboxes: whose state it is, for which templates hypervisors wait and what
becomes of the clone, the caller says.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Protocol

from vmpool import clone
from vmpool.lanes import Lanes
from vmpool.standby import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool.agent import Airtime
    from vmpool.clone import Clone, RestoreDeadlines, Waiting
    from vmpool.model import Identity, Waking
    from vmpool.snapshot import Snapshot
    from vmpool.standby import Standby

_PARTY = "sandboxes that are paused"


class Boot(Protocol):
    """Boots a clone on a disk."""

    async def __call__(
        self,
        template: Snapshot,
        state: Snapshot,
        *,
        identity: Callable[[str], Identity],
        policy: Waking,
        party: str,
    ) -> Clone:
        """Return it running."""


class Nursery:
    """What makes clones of states.

    Args:
        standby: Has the hypervisors.
        airtime: What the guests share.
        spares: How many are to wait for each template that `prepare` names.
        boot: Makes a clone of a state that is a disk alone, as `Rebooting.boot`.
    """

    def __init__(
        self,
        standby: Standby,
        *,
        deadlines: RestoreDeadlines,
        airtime: Airtime,
        spares: int,
        boot: Boot,
    ) -> None:
        self._standby = standby
        self._boot = boot
        self._deadlines = deadlines
        self._airtime = airtime
        self._spares = spares
        self._waking = Lanes(AT_ONCE)

    def prepare(self, template: Snapshot) -> None:
        """Have hypervisors wait for the next states of a template. *Idempotent.*"""
        self._standby.keep(template, self._spares, party=_PARTY)

    def forgo(self, template: Snapshot) -> None:
        """Have none wait any more that nobody else wants; they end later. *Idempotent.*"""
        self._standby.keep(template, 0, party=_PARTY)

    async def drop(self, base_id: str) -> None:
        """Do the same, and return when they are gone. *Idempotent.*"""
        await self._standby.drop(base_id, party=_PARTY)

    async def stand_by(self, template: Snapshot) -> Waiting:
        """Return a hypervisor that waits for a state; the caller kills it or has it `wake`.

        Raises:
            EngineError: The hypervisor failed.
            HostError, DiskFullError: There is no place for its directory.
        """
        return await self._standby.take(template)

    async def wake(
        self,
        waiting: Waiting,
        state: Snapshot,
        *,
        key: bytes,
        identity: Callable[[str], Identity],
        policy: Waking,
        party: str,
    ) -> Clone:
        """Have a waiting hypervisor go on from a state; on failure nothing of it is left.

        Args:
            key: What the agent in the state obeys.
            identity: Says who a clone of a given id is to be.
            party: Whose it is: when more are to wake than may at one time, parties take turns.

        Raises:
            VmpoolError: As `clone.descend`.
        """
        async with AsyncExitStack() as turn:
            try:
                await turn.enter_async_context(self._waking.one(party))
            except BaseException:
                await waiting.kill()
                raise
            return await clone.descend(
                waiting,
                state,
                key=key,
                identity=identity(waiting.id),
                policy=policy,
                deadlines=self._deadlines,
                airtime=self._airtime,
            )

    async def grow(
        self,
        template: Snapshot,
        state: Snapshot,
        *,
        key: bytes,
        identity: Callable[[str], Identity],
        policy: Waking,
        party: str,
    ) -> Clone:
        """Return a clone that goes on from a state of `template`'s; as `wake`.

        On one that is a disk alone it is booted, in turn as well, and obeys a key of its own.

        Raises:
            VmpoolError: As `stand_by` and `wake`; or as `Rebooting.boot`.
        """
        if not state.has_memory:
            return await self._boot(
                template,
                state,
                identity=identity,
                policy=policy,
                party=party,
            )
        waiting = await self.stand_by(template)
        return await self.wake(
            waiting, state, key=key, identity=identity, policy=policy, party=party
        )
