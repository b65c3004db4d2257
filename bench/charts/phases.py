"""Phases: what a time is made of, medians stacked one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.charts import style

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.record import Record

_RESTORE = ("spawn", "load", "resume", "hello", "identify", "warm", "rest")
_FORK = ("prepare", "paused", "write", "publish")
_LEAST_SHARE = 0.045
"""Of the longest bar, that a phase must take to have its time written on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One bar."""

    label: str
    phases: tuple[tuple[str, float], ...]

    @property
    def total(self) -> float:
        """How long the bar is."""
        return sum(took for _, took in self.phases)


def draw(record: Record) -> Figure | None:
    """Draw restores and checkpoints by their phases; `None` without either."""
    groups = (
        ("A clone from nothing", list(_stacks(record, "restore", _RESTORE))),
        ("A checkpoint of a running clone", list(_stacks(record, "fork", _FORK))),
    )
    shown = [(title, stacks) for title, stacks in groups if stacks]
    if not shown:
        return None
    height = sum(1.5 + 0.5 * len(stacks) for _, stacks in shown)
    drawn, panels = style.figure(height, rows=len(shown))
    for panel, (title, stacks) in zip(panels, shown, strict=True):
        _bars(panel, title, stacks)
    return drawn


def _stacks(record: Record, measurement: str, phases: tuple[str, ...]) -> Iterator[Stack]:
    """Yield a bar for each condition that a measurement's series are named by."""
    for finding in record.of(measurement):
        conditions = dict.fromkeys(
            one.name.rpartition(": ")[0] for one in finding.series if ": " in one.name
        )
        for condition in conditions:
            named = [(phase, finding.named(f"{condition}: {phase}")) for phase in phases]
            medians = tuple((phase, one.median) for phase, one in named if one is not None)
            if medians:
                yield Stack(label=f"{finding.image}, {condition}", phases=medians)


def _bars(panel: Axes, title: str, stacks: list[Stack]) -> None:
    longest = max(one.total for one in stacks) or 1.0
    order = list(dict.fromkeys(phase for one in stacks for phase, _ in one.phases))
    colours = dict(zip(order, style.COLOURS, strict=False))
    for row, one in enumerate(reversed(stacks)):
        at = 0.0
        for phase, took in one.phases:
            panel.barh(
                row,
                took,
                left=at,
                height=0.62,
                color=colours.get(phase, style.FAINT),
                edgecolor=style.PAPER,
                linewidth=1.2,
            )
            if took / longest > _LEAST_SHARE:
                panel.text(
                    at + took / 2,
                    row,
                    f"{took:.0f}" if took >= 10 else f"{took:.1f}",
                    ha="center",
                    va="center",
                    color=style.PAPER,
                    fontsize=9,
                )
            at += took
        panel.text(
            at + longest * 0.012, row, style.milliseconds(at), va="center", fontweight="bold"
        )
    for phase in order:
        panel.barh(0, 0, color=colours.get(phase, style.FAINT), label=phase)
    panel.set_yticks(range(len(stacks)), [style.shortened(one.label) for one in reversed(stacks)])
    panel.tick_params(axis="y", length=0, labelcolor=style.INK)
    panel.grid(visible=False, axis="y")
    panel.spines["left"].set_visible(False)
    panel.set_xlim(0, longest * 1.12)
    panel.set_xlabel("ms, medians")
    panel.set_title(title)
    panel.legend(
        loc="lower right",
        bbox_to_anchor=(1.0, 1.0),
        ncols=len(order),
        fontsize=9,
        handlelength=0.9,
        columnspacing=1.1,
    )
