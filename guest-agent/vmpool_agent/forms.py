"""Forms: values as data, beside the forms in which they are shown.

What is too large to be told beside its picture or its table is not told; so is what cannot be read,
for a value's own code has a hand in it.
"""

from __future__ import annotations

import datetime
import json
import math
from typing import Any

from vmpool_agent import charts

CHART = "e2b/chart"
DATA = "e2b/data"
"""The names that E2B's clients know them by."""

_MOST_BYTES = 256 * 1024
_MOST_CELLS = 20_000


def chart(figure: Any) -> str | None:
    """Return a matplotlib figure's chart as JSON."""
    try:
        told = charts.chart(figure)
        return None if told is None else _text(told)
    except Exception:  # noqa: BLE001 a figure that is like no other is shown all the same
        return None


def table(frame: Any) -> str | None:
    """Return a pandas frame's columns as JSON, each a list of its values."""
    try:
        if frame.size > _MOST_CELLS:
            return None
        columns = frame.items()
        return _text({str(name): [_cell(value) for value in column] for name, column in columns})
    except Exception:  # noqa: BLE001 columns may hold whatever somebody made
        return None


def document(value: Any) -> Any:
    """Return a list or a dict that can be told as JSON, else `None`."""
    try:
        return value if len(value) <= _MOST_CELLS and _text(value) is not None else None
    except Exception:  # noqa: BLE001 it may hold what JSON has no words for, or itself
        return None


def _text(value: object) -> str | None:
    text = json.dumps(value, allow_nan=False)
    return text if len(text) <= _MOST_BYTES else None


def _cell(value: Any) -> object:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, (datetime.date, datetime.datetime)):
        return value.isoformat() if value == value else None  # noqa: PLR0124 what is no time is not
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (bool, int)) else str(value)
