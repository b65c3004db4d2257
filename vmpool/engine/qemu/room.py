"""Room: what copies of all machines share, so that many at once do not take a host down.

Memory of this process, where who comes first is served first: one that wants much is not passed by
others that want little. And turns at giving machines their pages, which takes all that a processor
and its memory can give: taken one behind the other, the first is done in a part of the time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMIT_BYTES = 512 << 20
"""Two copies of the largest that is made at once, or some ten of the usual ones."""


class Room:
    """So many bytes.

    Args:
        limit_bytes: Of all together; one that wants more gets it when there is no other.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._taken_bytes = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def taken_bytes(self) -> int:
        """How much is taken now."""
        return self._taken_bytes

    @contextlib.asynccontextmanager
    async def taken(self, size_bytes: int) -> AsyncIterator[None]:
        """Take `size_bytes` for the length of the block; waits until there is room."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size_bytes, turn))
        self._let_in()
        try:
            await turn
            yield
        finally:
            if not turn.cancelled():  # while it waited, that is
                self._taken_bytes -= size_bytes
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            size_bytes, turn = self._waiting[0]
            if turn.cancelled():
                self._waiting.popleft()
                continue
            if self._taken_bytes and self._taken_bytes + size_bytes > self._limit_bytes:
                return
            self._waiting.popleft()
            self._taken_bytes += size_bytes
            turn.set_result(None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """What the copies of one engine's machines share.

    Attributes:
        turn: Held by who gives a machine its pages, and given to others now and then.
    """

    room: Room = field(default_factory=Room)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
