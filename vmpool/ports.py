"""Ports: what may be reached of the sandboxes of a host, and by whom.

It finds the sandbox that a token or nothing at all opens a port of, and writes down who may. How a
port is reached, and what is spoken there, is not known here.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from vmpool.exposure import TrafficToken, digest_of
from vmpool.model import new_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vmpool.exposure import Exposure
    from vmpool.household import Household
    from vmpool.sandbox import Sandbox
    from vmpool.store import Store

TOKEN_PREFIX = "vmt_"  # noqa: S105 -- what tells one from others, no secret


class Ports:
    """The ports of all sandboxes of a host."""

    def __init__(self, store: Store, household: Household) -> None:
        self._store = store
        self._household = household
        self._known: WeakKeyDictionary[Sandbox, Exposure] = WeakKeyDictionary()
        self._changing = asyncio.Lock()

    def living(self, sandbox_id: str) -> Sandbox | None:
        """Return a sandbox that has not ended, whoever's it is."""
        holding = self._household.living(sandbox_id)
        return None if holding is None else holding.sandbox

    def signed_for(self, fits: Callable[[str], bool]) -> Sandbox | None:
        """Return the sandbox that a signature opens, made with its access token.

        Args:
            fits: Whether it was made with a token; asked of every sandbox.
        """
        return self._household.opened_by(fits)

    async def standing_token(self, sandbox: Sandbox) -> str:
        """Return a token that opens all ports of a sandbox for its whole life. *Idempotent.*

        The same each time, also after a restart, and written down nowhere; made good if it is not.
        Once revoked, it is another one.

        Raises:
            CapacityError: `traffic_tokens_full`.
            StoreError, DiskFullError: The journal could not take it; there is no token.
        """
        exposure = await self.exposure(sandbox)
        if not exposure.holds(digest_of(self._standing(sandbox, exposure))):
            exposure = await self._change(sandbox, lambda it: self._with_standing(sandbox, it))
        return self._standing(sandbox, exposure)

    def _with_standing(self, sandbox: Sandbox, exposure: Exposure) -> Exposure:
        digest = digest_of(self._standing(sandbox, exposure))
        if exposure.holds(digest):  # somebody else was faster
            return exposure
        row = TrafficToken(id=new_id(), port=None, digest=digest, created_ns=time.time_ns())
        return exposure.adding(row)

    def _standing(self, sandbox: Sandbox, exposure: Exposure) -> str:
        number = f" {exposure.revoked}" if exposure.revoked else ""
        return TOKEN_PREFIX + self._store.token(of=f"ports of {sandbox.id}{number}")

    async def exposure(self, sandbox: Sandbox) -> Exposure:
        """Return who may reach what of a sandbox.

        Raises:
            StoreError: The journal cannot be read.
        """
        known = self._known.get(sandbox)
        if known is None:
            found = await self._store.exposures.find(sandbox.id)
            known = self._known.setdefault(sandbox, found)  # a change may have come before
        return known

    async def opened_by(self, token: str, *, sandbox_id: str, port: int) -> Sandbox | None:
        """Return the sandbox when a traffic token of its own opens the port.

        Raises:
            StoreError: The journal cannot be read.
        """
        holding = self._household.living(sandbox_id)
        if holding is None or not (await self.exposure(holding.sandbox)).admits(token, port):
            return None
        return holding.sandbox

    async def open_to_all(self, *, sandbox_id: str, port: int) -> Sandbox | None:
        """Return the sandbox when everybody may reach the port.

        Raises:
            StoreError: The journal cannot be read.
        """
        holding = self._household.living(sandbox_id)
        if holding is None or not (await self.exposure(holding.sandbox)).is_public(port):
            return None
        return holding.sandbox

    async def publish(self, sandbox: Sandbox, port: int | None, *, public: bool) -> Exposure:
        """Let everybody reach a port from now on, or nobody without a token. *Idempotent.*

        When cancelled, it may be so or not; what the journal says holds. The others likewise.

        Args:
            port: `None` for all.

        Raises:
            CapacityError: `ports_full`.
            StoreError, DiskFullError: The journal could not take it; nothing has changed.
        """
        return await self._change(sandbox, lambda it: it.publishing(port, public=public))

    async def open_first(self, sandbox: Sandbox, ports: Iterable[int]) -> None:
        """Let everybody reach ports of a sandbox that nobody was told of yet. *Idempotent.*

        Raises:
            CapacityError: `ports_full`.
            StoreError, DiskFullError: As `publish`.
        """

        def opened(it: Exposure) -> Exposure:
            for port in ports:
                it = it.publishing(port, public=True)
            return it

        await self._change(sandbox, opened)

    async def add_token(self, sandbox: Sandbox, port: int | None) -> tuple[str, TrafficToken]:
        """Make a token that opens a port and return it, this once. *Not idempotent.*

        Args:
            port: `None` for all.

        Raises:
            CapacityError: `traffic_tokens_full`.
            StoreError, DiskFullError: The journal could not take it; there is no token.
        """
        token = TOKEN_PREFIX + secrets.token_urlsafe(32)
        row = TrafficToken(
            id=new_id(), port=port, digest=digest_of(token), created_ns=time.time_ns()
        )
        await self._change(sandbox, lambda it: it.adding(row))
        return token, row

    async def revoke_token(self, sandbox: Sandbox, token_id: str) -> None:
        """Make a token useless; what was begun with it goes on. *Not idempotent.*

        Raises:
            NotFoundError: `traffic_token_not_found`.
            StoreError, DiskFullError: The journal could not take it; the token is good.
        """

        def revoke(it: Exposure) -> Exposure:
            return it.without(token_id, standing=digest_of(self._standing(sandbox, it)))

        await self._change(sandbox, revoke)

    async def _change(self, sandbox: Sandbox, change: Callable[[Exposure], Exposure]) -> Exposure:
        async with self._changing:
            changed = change(await self.exposure(sandbox))
            try:
                await self._store.exposures.save(sandbox.id, changed)
            except BaseException:
                # When cancelled, it may be written yet: whoever asks next is told after that.
                self._known.pop(sandbox, None)
                raise
            self._known[sandbox] = changed
        return changed
