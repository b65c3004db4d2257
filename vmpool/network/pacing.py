"""Pacing: how often what a guest does may take up the server's time.

A guest sends as fast as it likes. Its descriptor is looked at only so often; between, what comes is
for the kernel to throw away, which costs this process nothing.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_TURN: Final = 32
"""Readings in a row, before others of the loop have theirs."""


class Bucket:
    """An allowance that fills up as time goes by.

    Args:
        rate: Of takings, each second.
        burst: Takings at once, when none was for long.
        clock: Seconds, never going back.
    """

    def __init__(self, *, rate: float, burst: int, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._level = float(burst)
        self._filled = clock()

    def take(self) -> bool:
        """Take one; tell whether there was one."""
        if self.empty:
            return False
        self._level -= 1
        return True

    @property
    def empty(self) -> bool:
        """Whether there is none to take."""
        now = self._clock()
        self._level = min(self._burst, self._level + (now - self._filled) * self._rate)
        self._filled = now
        return self._level < 1

    @property
    def refill_seconds(self) -> float:
        """How long to wait until a quarter of a burst is there, after the last one was taken."""
        return max(1.0, self._burst / 4) / self._rate


class PacedReader:
    """Reads a descriptor when there is something, as often as a bucket allows. Owned by who opened.

    Args:
        read: Reads once; tells whether there may be more. Raises nothing.
        on_pause: Is told each time that the bucket is empty; what comes now may be lost.
    """

    def __init__(
        self,
        fd: int,
        read: Callable[[], bool],
        bucket: Bucket,
        *,
        on_pause: Callable[[], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._fd = fd
        self._read = read
        self._bucket = bucket
        self._on_pause = on_pause
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(fd, self._turn)

    def close(self) -> None:
        """Read no more; before the descriptor is closed. *Idempotent.*"""
        self._loop.remove_reader(self._fd)
        if self._timer is not None:
            self._timer.cancel()

    def _turn(self) -> None:
        for _ in range(_TURN):
            if not self._bucket.take():
                self._loop.remove_reader(self._fd)
                self._timer = self._loop.call_later(self._bucket.refill_seconds, self._go_on)
                self._on_pause()
                return
            if not self._read():
                return

    def _go_on(self) -> None:
        self._timer = None
        self._loop.add_reader(self._fd, self._turn)
