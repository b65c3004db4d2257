"""Lanes: a bounded number of something under way, shared fairly by those who want more of it.

It does not know what is under way, nor how long that takes.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from vmpool.rota import Rota

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Lanes:
    """So many lanes; when none is free, parties come by one in turn.

    Whoever has them all gives one in two to another party as soon as it wants one.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._waiting: Rota[asyncio.Future[None]] = Rota()

    @contextlib.asynccontextmanager
    async def one(self, party: str) -> AsyncIterator[None]:
        """Hold a lane for the time of a block; wait for one if need be."""
        if self._free > 0:
            self._free -= 1
        else:
            await self._turn(party)
        try:
            yield
        finally:
            self._pass_on()

    async def _turn(self, party: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(party, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # it was just given
                self._pass_on()
            self._waiting.remove(turn)
            raise

    def _pass_on(self) -> None:
        if not self._waiting.serve(_give):
            self._free += 1


def _give(turn: asyncio.Future[None]) -> bool:
    if turn.done():
        return False
    turn.set_result(None)
    return True
