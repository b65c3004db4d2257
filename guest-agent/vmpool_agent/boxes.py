"""Boxes: the box plots on a pair of matplotlib's axes, found by their shape.

A box plot leaves nothing behind that says what it was, only lines and outlines: a closed outline
with a whisker on each side is a box, and what stands on its middle belongs to it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

_CORNERS = 5
"""Of an outline that is closed: the first one again at its end."""
_NOTCHED = 8
"""An outline of more corners has notches, whose corners come between those of the box."""


class Box(NamedTuple):
    """One box.

    Attributes:
        upright: Whether its values are on the y axis.
        at: Where it stands on the other one.
    """

    upright: bool
    at: float
    width: float
    least: float
    first_quartile: float
    median: float
    third_quartile: float
    most: float
    outliers: list[float]


class _Stroke(NamedTuple):
    """A line as a box sees it: where it stands, and its values."""

    places: list[float]
    values: list[float]
    dotted: bool

    @property
    def middle(self) -> float:
        """Where it stands."""
        return (min(self.places) + max(self.places)) / 2

    def rises_from(self, value: float) -> bool:
        """Whether it is a whisker from there."""
        return self._is_stroke and self.places[0] == self.places[1] and self.values[0] == value

    @property
    def is_flat(self) -> bool:
        """Whether it lies across, as caps and medians do."""
        return self._is_stroke and self.places[0] != self.places[1]

    @property
    def _is_stroke(self) -> bool:
        return not self.dotted and len(self.values) == 2


def find(axes: Any) -> list[Box]:
    """Return the boxes on a pair of axes, in the order in which they were drawn."""
    lines = [_numbers(line) for line in axes.lines]
    outlines = [list(zip(*line)) for line in lines]
    for patch in axes.patches:
        if type(patch).__name__ == "PathPatch":
            outlines.append([(float(x), float(y)) for x, y in patch.get_path().vertices])
    dotted = [line.get_linestyle() == "None" for line in axes.lines]
    found = []
    for corners in outlines:
        if len(corners) >= _CORNERS and corners[0] == corners[-1]:
            found.append(_box(corners, list(zip(lines, dotted))))
    return [box for box in found if box is not None]


def _numbers(line: Any) -> tuple[list[float], list[float]]:
    x, y = line.get_data(orig=False)
    return [float(value) for value in x], [float(value) for value in y]


def _box(
    corners: list[tuple[float, float]], lines: list[tuple[tuple[list[float], list[float]], bool]]
) -> Box | None:
    """Return the box of an outline; `None` where it has no whiskers."""
    upright = corners[0][0] != corners[1][0]
    across, along = (0, 1) if upright else (1, 0)
    places = [corner[across] for corner in corners]
    at, width = (min(places) + max(places)) / 2, max(places) - min(places)
    low, high = corners[0][along], corners[5 if len(corners) > _NOTCHED else 2][along]
    strokes = [_Stroke(line[across], line[along], dots) for line, dots in lines if line[0]]
    own = [one for one in strokes if math.isclose(one.middle, at, abs_tol=1e-6 * width)]
    ends = [one.values[1] for value in (low, high) for one in own if one.rises_from(value)]
    if len(ends) < 2:
        return None
    least, most = ends[0], ends[-1]
    levels = [one.values[0] for one in own if one.is_flat and low <= one.values[0] <= high]
    # The last, for a mean may come before them.
    dots = next((one.values for one in reversed(own) if one.dotted), [])
    return Box(
        upright=upright,
        at=at,
        width=width,
        least=least,
        first_quartile=low,
        median=levels[-1] if levels else low,
        third_quartile=high,
        most=most,
        outliers=[value for value in dots if not least <= value <= most],
    )
