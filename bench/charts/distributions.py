"""Distributions: how often an answer came within which time, not only what the middle one took."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from matplotlib.ticker import PercentFormatter

from bench.charts import style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.record import Record
    from bench.samples import Series

_PANELS: tuple[tuple[str, tuple[tuple[str, str, str], ...]], ...] = (
    (
        "A request",
        (
            ("create", r"create, a clone ready", "create, a clone ready"),
            ("create", r"create, none ready", "create, none ready"),
            ("request", r"alone: client, to the full answer", "run, a clone ready"),
            ("request", r"beside a refill: client.*", "run, beside a refill"),
            ("outputs", r"first run: first output", "first output in a sandbox"),
            ("outputs", r"second run: first output", "second output"),
            ("outputs", r"later run: first output", "later outputs"),
            ("outputs", r"import numpy.*", "import numpy"),
        ),
    ),
    (
        "A machine",
        (
            ("restore", r".* MiB: to resumed", "restored, to resumed"),
            ("restore", r".* MiB: to ready", "restored, to ready"),
            ("pause", r"pause", "pause"),
            ("pause", r"resume", "resume"),
            ("pause", r"checkpoint", "checkpoint"),
            ("fork", r"0 MiB written: paused", "fork: the parent holds still"),
            ("fork", r"0 MiB written: first child", "fork: the first child runs"),
            ("create", r"kill", "kill"),
        ),
    ),
)
"""Title; measurement, name of the series, and what its line is called."""


def draw(record: Record) -> Figure | None:
    """Draw a curve for each series that is there; `None` without any."""
    found = [(title, _series(record, wanted)) for title, wanted in _PANELS]
    shown = [(title, lines) for title, lines in found if lines]
    if not shown:
        return None
    drawn, panels = style.figure(4.3 * len(shown), rows=len(shown))
    for panel, (title, lines) in zip(panels, shown, strict=True):
        _curves(panel, title, lines)
    return drawn


def _series(record: Record, wanted: Sequence[tuple[str, str, str]]) -> list[tuple[str, Series]]:
    found = []
    for measurement, pattern, label in wanted:
        for finding in list(record.of(measurement))[:1]:
            matching = [one for one in finding.series if re.fullmatch(pattern, one.name)]
            found += [(label, one.series) for one in matching[:1]]
    return found


def _curves(panel: Axes, title: str, lines: Sequence[tuple[str, Series]]) -> None:
    style.times_across(panel)
    panel.grid(visible=True, axis="y")
    for colour, (label, one) in zip(style.COLOURS, lines, strict=False):
        ordered = sorted(one.samples)
        share = [(number + 1) / len(ordered) for number in range(len(ordered))]
        text = f"{label}  {style.milliseconds(one.median)}  (n={len(ordered)})"
        panel.step([ordered[0], *ordered], [0.0, *share], where="post", color=colour, label=text)
        panel.scatter([one.median], [0.5], s=34, color=colour, zorder=3)
    panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    panel.set_ylim(0, 1.02)
    panel.set_ylabel("answered within")
    panel.set_title(title)
    panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="median", alignment="left")
