"""Dawn: clones that were handed out wake a few at a time.

A guest that wakes computes for some milliseconds. Where many are handed out at one moment, that is
time which whoever asks for the next one waits for, while most of those that have theirs ask nothing
of it yet. One that is asked something wakes at once.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator


class Dawn:
    """Says who wakes next. Belongs to one event loop."""

    def __init__(self, at_once: int) -> None:
        self._at_once = at_once
        self._waking = 0
        self._line: dict[asyncio.Event, None] = {}

    @contextlib.asynccontextmanager
    async def turn(self, called: asyncio.Event) -> AsyncIterator[None]:
        """Wait until it is one's turn, or one is called; the block is the time that waking takes.

        Args:
            called: Set by whoever does not wait for a turn to come; set here when it has.
        """
        if self._waking >= self._at_once:
            self._line[called] = None
            try:
                await called.wait()
            except BaseException:
                self._next()  # the turn may have come, and would be lost
                raise
            finally:
                self._line.pop(called, None)
        called.set()
        self._waking += 1
        try:
            yield
        finally:
            self._waking -= 1
            self._next()

    def _next(self) -> None:
        if self._line and self._waking < self._at_once:
            called = next(iter(self._line))
            del self._line[called]
            called.set()
