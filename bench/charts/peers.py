"""Peers: everything that ran the same line, side by side, every start a dot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.charts import style
from bench.line import FIRST_OUTPUT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.record import FindingRecord, Record
    from bench.samples import Series

_SUFFIX = f": {FIRST_OUTPUT}"
_OURS = "vmpool"


def draw(record: Record) -> Figure | None:
    """Draw the first image's peers, the fastest at the top; `None` without any."""
    finding = next(record.of("peers"), None)
    found = [] if finding is None else _starts(finding)
    if not found:
        return None
    drawn, (panel,) = style.figure(1.1 + 0.46 * len(found))
    style.times_across(panel)
    found.sort(key=lambda one: -one.median)
    ours = [one for one in found if one.name.startswith(_OURS)]
    reference = min((one.median for one in ours), default=None)
    for row, one in enumerate(found):
        _row(panel, row, one, reference)
    labels = [style.shortened(one.name.removesuffix(_SUFFIX)) for one in found]
    panel.set_yticks(range(len(found)), labels)
    for label, one in zip(panel.get_yticklabels(), found, strict=True):
        mine = one.name.startswith(_OURS)
        label.set_color(style.OURS if mine else style.INK)
        label.set_fontweight("bold" if mine else "normal")
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
    low = min(min(one.samples) for one in found)
    high = max(max(one.samples) for one in found)
    panel.set_xlim(low / 1.6, high * 7)
    panel.set_ylim(-0.7, len(found) - 0.3)
    panel.set_title("print(6*7): from nothing, or from the request, to its output")
    return drawn


def _starts(finding: FindingRecord) -> list[Series]:
    return [one.series for one in finding.series if one.name.endswith(_SUFFIX)]


def _row(panel: Axes, row: int, one: Series, reference: float | None) -> None:
    mine = one.name.startswith(_OURS)
    colour = style.OURS if mine else style.THEIRS
    panel.plot(
        [panel.get_xlim()[0], one.median], [row, row], color=style.RULE, linewidth=1, zorder=1
    )
    panel.scatter(
        one.samples,
        [row] * len(one.samples),
        s=26,
        color=colour,
        alpha=0.35,
        linewidths=0,
        zorder=2,
    )
    panel.scatter([one.median], [row], s=95, color=colour, marker="D", zorder=3)
    times = ""
    if reference and one.median != reference:
        factor = one.median / reference
        times = (
            f"   {factor:.0f} {style.TIMES}" if factor >= 10 else f"   {factor:.1f} {style.TIMES}"
        )
    panel.text(
        max(one.samples) * 1.25,
        row,
        f"{style.milliseconds(one.median)}{times}",
        va="center",
        color=style.OURS if mine else style.INK,
        fontweight="bold" if mine else "normal",
    )
