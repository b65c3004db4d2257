"""Network: connects the sandboxes of one host instance, and finds again what another one left.

Nothing of the machine's is changed, and no library for it loaded, until a sandbox wants a network.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING

from vmpool.egress import Bandwidth, NetworkMode
from vmpool.network import addressing, namespace
from vmpool.network.addressing import Range

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmpool.config import NetworkSettings
    from vmpool.egress import NetworkPolicy
    from vmpool.network.connection import Connection
    from vmpool.network.events import EventLog
    from vmpool.network.slots import Slot, Slots
    from vmpool.network.upstream import Servers


class Network:
    """What sandboxes are connected to.

    Args:
        state: The host instance's directory, which names all that is its own in the kernel.
        on_denial: Told the rule of each denial.
    """

    def __init__(
        self, state: Path, settings: NetworkSettings, *, on_denial: Callable[[str], None]
    ) -> None:
        self._tag = hashlib.sha256(os.fsencode(state.resolve())).hexdigest()[:6]
        self._settings = settings
        self._range = Range.parse(settings.range)
        self._closed = addressing.closed(settings.closed)
        self._on_denial = on_denial
        self._slots: Slots | None = None
        self._upstream: Servers | None = None

    @property
    def tally(self) -> dict[str, int]:
        """How many slots are in each state."""
        slots = self._slots
        return {
            "ready": 0 if slots is None else slots.ready,
            "taken": 0 if slots is None else slots.held,
        }

    def new_log(self) -> EventLog:
        """Return what a sandbox's denials are noted in, for all of its life."""
        from vmpool.network.events import EventLog  # noqa: PLC0415 -- as in `_opened`

        return EventLog(self._on_denial)

    def require(self) -> None:
        """Make sure that there can be networks, as far as that can be told without making one.

        Raises:
            HostError: `network_unavailable`, with a remedy.
        """
        from vmpool.network import trunk  # noqa: PLC0415 -- as in `_opened`

        trunk.require()

    async def begin(self) -> None:
        """Make slots ahead when sandboxes have a network unless they ask for none.

        Raises:
            HostError: `network_unavailable`; sandboxes cannot have what the settings give them.
        """
        if self._settings.default is not NetworkMode.NONE:
            self.require()
            self._opened().stock()

    def stock(self) -> None:
        """Have slots made anew for those that were taken, behind the caller's back."""
        if self._slots is not None:
            self._slots.stock()

    async def connect(self, policy: NetworkPolicy, events: EventLog, *, owner: str) -> Connection:
        """Return a connection that has its rules and no guest yet; the caller closes it.

        And calls `stock` when its guest is connected, or was not.

        Args:
            owner: The tenant whose share it has of what all have together.

        Raises:
            HostError: `network_unavailable`, `network_failed`; nothing is held.
            CapacityError: `network_full`.
        """
        slot = await self._opened().take()
        return await self._begun(slot, policy, events, owner)

    async def adopt(
        self, number: int, policy: NetworkPolicy, events: EventLog, *, owner: str
    ) -> Connection:
        """Return the connection of a machine that another server has connected.

        Args:
            number: Of its slot.
            owner: As in `connect`.

        Raises:
            HostError: `network_failed`; it is gone, or the kernel refused.
        """
        slot = await self._opened().adopt(number, policy)
        return await self._begun(slot, policy, events, owner)

    async def reap(self) -> int:
        """Remove what a server that is gone has left and nobody adopted; return how many slots."""
        ours = await asyncio.to_thread(lambda: list(namespace.named(f"vmpool-{self._tag}-")))
        return await self._opened().reap() if ours else 0

    async def close(self) -> None:
        """Remove all but what adopted machines will use. *Idempotent*, completes when cancelled."""
        if self._slots is not None:
            await self._slots.close()

    async def _begun(
        self, slot: Slot, policy: NetworkPolicy, events: EventLog, owner: str
    ) -> Connection:
        from vmpool.network.connection import Connection  # noqa: PLC0415 -- as in `_opened`

        assert self._upstream is not None
        connection = Connection(
            slot,
            policy,
            slots=self._opened(),
            protected=(self._range.network,),
            closed=self._closed,
            upstream=self._upstream.of(owner),
            events=events,
        )
        try:
            await connection.begin()
        except BaseException:
            await connection.close()
            raise
        return connection

    def _opened(self) -> Slots:
        """Return the slots, with all that they need.

        Its libraries take a quarter of a second to load, so they are not until somebody wants one.
        """
        if self._slots is None:
            from vmpool.network.slots import Slots  # noqa: PLC0415
            from vmpool.network.trunk import Trunk  # noqa: PLC0415
            from vmpool.network.upstream import Server, Servers  # noqa: PLC0415

            servers = tuple(Server.parse(each) for each in self._settings.dns)
            self._upstream = Servers(servers)
            trunk = Trunk(tag=self._tag, within=self._range)
            self._slots = Slots(
                trunk,
                ready=self._settings.ready,
                closed=self._closed,
                most=Bandwidth(up=self._settings.up, down=self._settings.down),
            )
        return self._slots
