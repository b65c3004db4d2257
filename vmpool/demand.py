"""Demand: how many spare clones would have spared everybody a wait lately.

Each request takes a spare, and restores, some at one time, bring one back each. The most that were
missing at one time is what a pool should have had: it grows with how often clones are asked for,
with how long a restore takes, and with how many are asked for at once. It is believed less as time
goes by. Pure: it reads no clock and knows no pool.
"""

from __future__ import annotations

import math
from collections import deque

HALF_LIFE = 300.0
"""Seconds in which half of what was learnt is forgotten."""

_GUESSED_SECONDS = 1.0
"""What a restore is taken to last until one has been seen."""

_WEIGHT = 0.2
"""Of the last restore among all before."""


class Demand:
    """What a pool was asked for, and what it takes to have it."""

    def __init__(self) -> None:
        self._restore_seconds: float | None = None
        self._back: deque[float] = deque()  # when each spare that is missing would be there again
        self._peak = 0
        self._peak_at = 0.0

    def restored(self, seconds: float) -> None:
        """Note how long a restore took, waiting for its turn included."""
        known = self._restore_seconds
        self._restore_seconds = seconds if known is None else known + _WEIGHT * (seconds - known)

    def asked(self, now: float, *, at_once: int, most: int) -> None:
        """Note that a clone is asked for.

        Args:
            now: Seconds of a clock that never goes back; the same here and below.
            at_once: How many restores may be under way.
            most: Spares that there may be; what is missing beyond them is not counted.
        """
        back = self._back
        while back and back[0] <= now:
            back.popleft()
        if len(back) < most:
            begins = max(now, back[-at_once]) if len(back) >= at_once else now
            ends = begins + (self._restore_seconds or _GUESSED_SECONDS)
            back.append(max(ends, back[-1]) if back else ends)
        if len(back) >= self._believed(now):
            self._peak, self._peak_at = len(back), now

    def spares(self, now: float) -> int:
        """Return how many spares there should be."""
        return math.ceil(self._believed(now) - 0.5)

    def falls_at(self, now: float) -> float:
        """Return when there should be fewer than now, if nobody asks; infinity when there are 0."""
        spares = self.spares(now)
        if spares == 0:
            return math.inf
        half_lives = math.log2(self._peak / (spares - 0.5))
        return max(self._peak_at + half_lives * HALF_LIFE, now) + 0.001  # past what rounding does

    def _believed(self, now: float) -> float:
        age = (now - self._peak_at) / HALF_LIFE
        return float(self._peak * 2.0**-age)
