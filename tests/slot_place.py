"""A place for slots: an internet of the test's own, and slots that lead there from this kernel."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests import internet as nets
from tests.internet import ALLOWED, PORT, Internet
from tests.tap_guest import TapGuest
from vmpool import egress
from vmpool.network import namespace
from vmpool.network.addressing import Range
from vmpool.network.slots import Slot, Slots
from vmpool.network.trunk import Trunk

OPEN: dict[str, Any] = {"mode": "open"}
GONE: dict[str, Any] = {"mode": "restricted", "allow": [{"domain": "gone.example"}]}
"""It opens a set of addresses that no slot here ever had."""
ONE: dict[str, Any] = {
    "mode": "restricted",
    "allow": [{"cidr": f"{ALLOWED}/32", "protocol": "udp", "ports": [PORT]}],
}


@dataclass
class Place:
    """An internet, and slots that lead there."""

    internet: Internet
    slots: Slots
    trunk: Trunk

    @contextlib.asynccontextmanager
    async def guest(self, policy: dict[str, Any]) -> AsyncIterator[tuple[TapGuest, Slot]]:
        """Yield a guest under a policy."""
        slot = await self.slots.take()
        guest = TapGuest(slot.tap)
        try:
            await asyncio.to_thread(slot.enforce, egress.policy(policy))
            yield guest, slot
        finally:
            guest.close()
            self.slots.give_back(slot)

    async def settle(self, guest: TapGuest) -> None:
        """Return when what was sent before has come wherever it goes: the last word is let through.

        What is denied and what is allowed takes the same way; the one that comes was sent last.
        """
        for _ in range(20):  # one may be dropped where there is too much
            word = secrets.token_bytes(8)
            guest.send_udp(ALLOWED, PORT, word)
            with contextlib.suppress(TimeoutError):
                await guest.received(_holding(word), 0.5)
                return
        pytest.fail("nothing is let through")

    @property
    def texts(self) -> list[str]:
        """What was heard anywhere."""
        return [text for _, _, text in self.internet.heard]


def _holding(word: bytes) -> Callable[[bytes], bool]:
    return lambda frame: word in frame


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[Place]:
    """Yield one; nothing of it is left."""
    async with nets.opened() as internet:
        trunk = Trunk(
            tag=secrets.token_hex(3), within=Range.parse("10.213.0.0/16"), home=internet.home
        )
        slots = Slots(trunk, ready=0)
        try:
            yield Place(internet, slots, trunk)
        finally:
            await slots.close()
        assert not list(namespace.named(f"vmpool-{trunk.tag}"))
        assert trunk.uplink not in internet.run(internet.home, "ip", "link")
        assert "vmpool" not in internet.run(internet.home, "nft", "list", "ruleset")
