"""Charts: what a matplotlib figure shows, as data.

Reads alone: matplotlib is met through the figure, for an image may have none, and nothing is drawn.
The shapes are those that E2B's clients know.
"""

from __future__ import annotations

import datetime
import math
import re
import sys
from typing import TYPE_CHECKING, Any

from vmpool_agent import boxes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_UNIT = re.compile(r"\(([^()]+)\)\s*\Z")
_SCALES = ("linear", "log", "symlog", "logit", "function", "functionlog", "asinh")
_MOST_NUMBERS = 20_000
"""A figure of more is shown, and not told: its data would be larger than its picture."""


def chart(figure: Any) -> dict[str, Any] | None:
    """Return the chart of a figure; `None` where there is nothing in it, or too much."""
    if sum(map(_size, figure.axes)) > _MOST_NUMBERS:
        return None
    charts = [one for one in map(_chart_of, figure.axes) if one is not None]
    if len(charts) <= 1:
        return charts[0] if charts else None
    title = figure.get_suptitle() if hasattr(figure, "get_suptitle") else ""
    return {"type": "superchart", "title": title, "elements": charts}


def _size(axes: Any) -> int:
    """Return how many things are drawn on a pair of axes."""
    drawn = sum(len(line.get_xdata(orig=False)) for line in axes.lines)
    return drawn + len(axes.patches) + sum(len(cloud.get_offsets()) for cloud in _clouds(axes))


def _chart_of(axes: Any) -> dict[str, Any] | None:
    """Return the chart on a pair of axes; `None` where nothing is drawn on them."""
    kind, elements = _content(axes)
    if not kind:
        return None
    told: dict[str, Any] = {"type": kind, "title": axes.get_title(), "elements": elements}
    if kind == "pie":
        return told
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        label = axis.get_label_text()
        unit = _UNIT.search(label)
        told[f"{name}_label"] = label or None
        told[f"{name}_unit"] = None if unit is None else unit.group(1)
        if kind in ("line", "scatter"):
            told.update(_scale(name, axis))
    return told


def _content(axes: Any) -> tuple[str, list[dict[str, Any]]]:
    """Return what kind of chart is on a pair of axes, none if empty, and its elements."""
    slices = [patch for patch in axes.patches if hasattr(patch, "theta1")]
    if slices:
        return "pie", [_slice(patch) for patch in slices]
    found = boxes.find(axes)
    if found:
        return "box_and_whisker", [_box(box, axes) for box in found]
    groups = [container for container in axes.containers if hasattr(container, "patches")]
    if groups:
        return "bar", [bar for group in groups for bar in _bars(group, axes)]
    clouds = _clouds(axes)
    if clouds:
        return "scatter", [_points(cloud, zip(*_columns(cloud)), axes) for cloud in clouds]
    if axes.lines:
        return "line", [_points(line, zip(*line.get_data()), axes) for line in axes.lines]
    return ("unknown" if axes.has_data() else ""), []


def _clouds(axes: Any) -> list[Any]:
    return [one for one in axes.collections if type(one).__name__ == "PathCollection"]


def _columns(cloud: Any) -> tuple[list[float], list[float]]:
    offsets = cloud.get_offsets()
    return [float(x) for x, _ in offsets], [float(y) for _, y in offsets]


def _points(artist: Any, pairs: Iterable[tuple[Any, Any]], axes: Any) -> dict[str, Any]:
    show_x, show_y = _place_of(axes.xaxis), _place_of(axes.yaxis)
    return {"label": _label(artist), "points": [[show_x(x), show_y(y)] for x, y in pairs]}


def _label(artist: Any) -> str:
    """Return what somebody called a thing; names of matplotlib's own begin with a line."""
    label = str(artist.get_label())
    return "" if label.startswith("_") else label


def _slice(wedge: Any) -> dict[str, Any]:
    angle = round(float(wedge.theta2 - wedge.theta1), 4)
    return {"label": _label(wedge), "angle": angle, "radius": float(wedge.r)}


def _box(box: boxes.Box, axes: Any) -> dict[str, Any]:
    axis = axes.xaxis if box.upright else axes.yaxis
    return {
        "label": _name_of(box.at, box.width, axis),
        "min": box.least,
        "first_quartile": box.first_quartile,
        "median": box.median,
        "third_quartile": box.third_quartile,
        "max": box.most,
        "outliers": box.outliers,
    }


def _bars(group: Any, axes: Any) -> Iterable[dict[str, Any]]:
    """Yield the bars of a group, each called as its place is."""
    upright = group.orientation != "horizontal"
    axis = axes.xaxis if upright else axes.yaxis
    for bar in group.patches:
        x, y, width, height = bar.get_x(), bar.get_y(), bar.get_width(), bar.get_height()
        at, breadth, value = (x, width, height) if upright else (y, height, width)
        yield {
            "label": _name_of(float(at + breadth / 2), float(breadth), axis),
            "value": _plain(value),
            "group": _label(group),
        }


def _name_of(at: float, breadth: float, axis: Any) -> str:
    """Return what an axis calls a place: the nearest of the names that were given it."""
    ticks = [float(tick) for tick in axis.get_ticklocs()]
    names = [tick.get_text() for tick in axis.get_ticklabels()]
    given = type(axis.get_major_locator()).__name__ == "FixedLocator" or _is_named(axis)
    if given and len(names) == len(ticks) > 0:
        distance, name = min((abs(tick - at), name) for tick, name in zip(ticks, names))
        if distance <= abs(breadth):
            return str(name)
    return str(_place_of(axis)(at)) if _is_dated(axis) else f"{at:g}"


def _scale(name: str, axis: Any) -> dict[str, Any]:
    """Return the scale of an axis, and where it is labelled."""
    scale = axis.get_scale()
    if _is_named(axis):
        scale = "categorical"
    elif _is_dated(axis):
        scale = "datetime"
    elif scale not in _SCALES:
        scale = "unknown"
    show = _place_of(axis)
    return {
        f"{name}_ticks": [show(float(tick)) for tick in axis.get_ticklocs()],
        f"{name}_tick_labels": [tick.get_text() for tick in axis.get_ticklabels()],
        f"{name}_scale": scale,
    }


def _place_of(axis: Any) -> Callable[[Any], object]:
    """Return what shows a place on an axis as data: names, dates, else numbers."""
    if _is_named(axis):
        names = {place: str(name) for name, place in axis.units._mapping.items()}
        return lambda value: value if isinstance(value, str) else names.get(value, _plain(value))
    dates: Any = sys.modules.get("matplotlib.dates")
    if dates is not None and _is_dated(axis):
        return lambda value: _plain(
            dates.num2date(value) if isinstance(value, (int, float)) else value
        )
    return _plain


def _is_named(axis: Any) -> bool:
    return hasattr(axis.units, "_mapping")


def _is_dated(axis: Any) -> bool:
    converter = axis.get_converter() if hasattr(axis, "get_converter") else axis.converter
    return "Date" in type(converter).__name__


def _plain(value: Any) -> object:
    """Return a value as JSON has it; what is no number there is nothing."""
    if isinstance(value, str):
        return value
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat()
    try:
        number = float(value)
    except (TypeError, ValueError):
        return str(value)
    return number if math.isfinite(number) else None
