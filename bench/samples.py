"""Samples: repeated measurements of one quantity, what they say, and whether that was promised.

Pure: it does not know what is measured or how. The 50th percentile is the median; the others are
nearest-rank, so that each is a value that was really measured and none lies about a short series.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

PERCENTILES = (95, 99, 99.9)


class Sense(StrEnum):
    """Which side of a target is the good one."""

    AT_MOST = "at most"
    AT_LEAST = "at least"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a median is meant to reach, in the unit of its series."""

    value: float
    sense: Sense = Sense.AT_MOST

    def met_by(self, value: float) -> bool:
        """Whether `value` is on the good side; the target itself is."""
        match self.sense:
            case Sense.AT_MOST:
                return value <= self.value
            case Sense.AT_LEAST:
                return value >= self.value


@dataclass(slots=True)
class Series:
    """Samples of one quantity in one unit, in the order in which they were taken.

    Attributes:
        target: `None` when nothing was promised.
        floor: Name of the series of what the machine allows, of which it is also given as a
            multiple; empty where there is none.
    """

    name: str
    unit: str = "ms"
    target: Target | None = None
    samples: list[float] = field(default_factory=list)
    floor: str = ""

    def add(self, value: float) -> None:
        """Note one sample."""
        self.samples.append(value)

    def percentile(self, rank: float) -> float:
        """Return the nearest-rank percentile; `rank` above 0, to 100.

        Raises:
            ValueError: There is no sample.
        """
        if not self.samples:
            raise ValueError(f"series {self.name!r} has no sample")
        ordered = sorted(self.samples)
        return ordered[math.ceil(rank / 100 * len(ordered)) - 1]

    @property
    def median(self) -> float:
        """The middle sample, or the mean of the middle two."""
        return statistics.median(self.samples)

    @property
    def spread(self) -> float:
        """The middle half of the samples, as a share of the median: how noisy they are."""
        if self.median == 0:
            return 0.0
        return (self.percentile(75) - self.percentile(25)) / abs(self.median)

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; `None` when nothing was promised."""
        return None if self.target is None else self.target.met_by(self.median)

    def as_data(self) -> dict[str, object]:
        """Return everything that is needed to judge the series later."""
        target = self.target
        return {
            "name": self.name,
            "unit": self.unit,
            "target": None if target is None else {"sense": target.sense, "value": target.value},
            "met": self.met,
            "floor": self.floor,
            "n": len(self.samples),
            "min": min(self.samples),
            "p50": self.median,
            **{f"p{rank}": self.percentile(rank) for rank in PERCENTILES},
            "max": max(self.samples),
            "spread": round(self.spread, 4),
            "samples": self.samples,
        }


_NAME_WIDTH = 50
_COLUMNS = ("n", "min", "p50", *(f"p{rank}" for rank in PERCENTILES), "target", "median")
_SIGNS = {Sense.AT_MOST: "<=", Sense.AT_LEAST: ">="}


def header() -> str:
    """Return the line above the rows of a table."""
    return _row("", _COLUMNS)


def rows(series: Iterable[Series]) -> list[str]:
    """Return a line for each series that has samples."""
    return [_series_row(one) for one in series if one.samples]


def _series_row(series: Series) -> str:
    numbers = (min(series.samples), series.median, *map(series.percentile, PERCENTILES))
    target, verdict = "", ""
    if series.target is not None:
        target = f"{_SIGNS[series.target.sense]} {series.target.value:g}"
        verdict = "meets" if series.met else "misses"
    cells = (str(len(series.samples)), *map(_number, numbers), target, verdict)
    return _row(f"  {series.name} [{series.unit}]", cells)


def _row(name: str, cells: Iterable[str]) -> str:
    return f"{name:<{_NAME_WIDTH}}{''.join(f'{cell:>9}' for cell in cells)}".rstrip()


def _number(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
