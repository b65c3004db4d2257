"""Samples: repeated measurements of one quantity, and what they say."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field


@dataclass(slots=True)
class Series:
    """Samples of one quantity in one unit, in the order in which they were taken.

    Attributes:
        target: What the median is meant to reach at most; `None` when nothing was promised.
    """

    name: str
    unit: str
    target: float | None = None
    samples: list[float] = field(default_factory=list)

    def add(self, value: float) -> None:
        """Note one sample."""
        self.samples.append(value)

    def percentile(self, rank: float) -> float:
        """Return the nearest-rank percentile; `rank` from 0 to 100."""
        ordered = sorted(self.samples)
        return ordered[max(0, math.ceil(rank / 100 * len(ordered)) - 1)]

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    def as_data(self) -> dict[str, object]:
        """Return everything that is needed to judge the series later."""
        return {
            "name": self.name,
            "unit": self.unit,
            "target": self.target,
            "p50": self.median,
            "p95": self.percentile(95),
            "p99": self.percentile(99),
            "min": min(self.samples),
            "max": max(self.samples),
            "samples": self.samples,
        }


class Table:
    """Series by name, made when first asked for."""

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}

    def series(self, name: str, unit: str = "ms", target: float | None = None) -> Series:
        """Return the series `name`."""
        return self._series.setdefault(name, Series(name, unit, target))

    def as_data(self) -> list[dict[str, object]]:
        """Return all series that have samples, in the order of their making."""
        return [series.as_data() for series in self._series.values() if series.samples]

    def render(self) -> str:
        """Return a table for people."""
        head = f"{'':46}{'n':>5}{'min':>10}{'p50':>10}{'p95':>10}{'p99':>10}{'target':>10}"
        lines = [head]
        for series in self._series.values():
            if not series.samples:
                continue
            target = f"{series.target:10.1f}" if series.target is not None else " " * 10
            lines.append(
                f"{series.name + ' [' + series.unit + ']':46}{len(series.samples):5}"
                f"{min(series.samples):10.1f}{series.median:10.1f}{series.percentile(95):10.1f}"
                f"{series.percentile(99):10.1f}{target}"
            )
        return "\n".join(lines)
