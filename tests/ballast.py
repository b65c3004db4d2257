"""Ballast: what a server weighs over its life, and whether it grows with what it has served."""

from __future__ import annotations

import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path

WARM = 3000
"""Sandboxes after which a server has been everywhere and has what it keeps for ever.

The journal's pages are the last of it: SQLite keeps two megabytes of them, which take the rows of
some 2,300 sandboxes to fill. Until then it grows by 0.8 MiB for each thousand by them alone.
"""

GROWTH_BYTES = 1 << 20
"""What it may weigh more for each thousand beyond that."""

LEAST = 1000
"""Of fewer sandboxes beyond the warm-up nothing can be told."""


@dataclass(slots=True, kw_only=True)
class Ballast:
    """Weights of one process.

    Attributes:
        weights: Sandboxes made by then, and resident bytes.
    """

    weights: list[tuple[int, int]] = field(default_factory=list)

    def weigh(self, pid: int, made: int) -> None:
        """Note what a process weighs now; one that is gone weighs nothing, and is not noted."""
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            return
        if pages:
            self.weights.append((made, pages * os.sysconf("SC_PAGE_SIZE")))

    @property
    def growth_bytes(self) -> float | None:
        """What each thousand sandboxes made it heavier, once warm; `None` when too few were."""
        warm = [each for each in self.weights if each[0] >= WARM]
        if not warm or warm[-1][0] - warm[0][0] < LEAST:
            return None
        slope, _ = statistics.linear_regression(*zip(*warm, strict=True))
        return slope * 1000

    def require_flat(self) -> None:
        """Fail when it grows."""
        growth = self.growth_bytes
        assert growth is None or growth < GROWTH_BYTES, f"{growth:.0f} bytes for each thousand"

    def by_thousands(self) -> list[float]:
        """Return what it weighed, in MiB, after each 500 sandboxes and at last."""
        shown, after = [], 0
        for made, weight in self.weights:
            if made >= after:
                shown.append(round(weight / (1 << 20), 1))
                after = (made // 500 + 1) * 500
        return shown + [round(weight / (1 << 20), 1) for _, weight in self.weights[-1:]]
