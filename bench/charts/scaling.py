"""Scaling: what becomes of rate and latency with many clients, many clones, and all at once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from matplotlib.ticker import FuncFormatter, MaxNLocator

from bench.charts import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from bench.record import FindingRecord, Record
    from bench.samples import Series

_LOAD = re.compile(r"(?P<what>[a-z]+), (?P<clients>\d+) clients: (?P<which>rate|latency)")
_CROWD = re.compile(r"(?P<alive>\d+) alive: create")
_BURST = re.compile(r"create, one of (?P<at_once>\d+) at once")
_BURST_TICKS = 5
"""More times than that in words of milliseconds overlap in half a page's width."""

_WORDS = {"run": "runs, each in a new machine", "execute": "executions in four sandboxes"}


def draw(record: Record) -> Figure | None:
    """Draw the panels that there is something for; `None` without any."""
    panels = [
        (draw_panel, finding)
        for name, drawers in _PANELS
        for finding in list(record.of(name))[:1]
        for draw_panel, pattern in drawers
        if any(re.match(pattern, one.name) for one in finding.series)
    ]
    if not panels:
        return None
    rows = -(-len(panels) // 2)
    drawn, axes = style.figure(3.7 * rows, rows=rows, columns=min(2, len(panels)))
    for panel, (draw_panel, finding) in zip(axes, panels, strict=False):
        draw_panel(panel, finding)
    for panel in axes[len(panels) :]:
        panel.set_axis_off()
    return drawn


def _loads(finding: FindingRecord, which: str) -> dict[str, list[tuple[int, Series]]]:
    found: dict[str, list[tuple[int, Series]]] = {}
    for one in finding.series:
        match = _LOAD.fullmatch(one.name)
        if match is not None and match["which"] == which:
            found.setdefault(match["what"], []).append((int(match["clients"]), one.series))
    return {what: sorted(lines, key=lambda line: line[0]) for what, lines in found.items()}


def _rates(panel: Axes, finding: FindingRecord) -> None:
    for colour, (what, lines) in zip(style.COLOURS, _loads(finding, "rate").items(), strict=False):
        clients = [number for number, _ in lines]
        rates = [one.median for _, one in lines]
        panel.plot(clients, rates, "o-", color=colour, label=_WORDS.get(what, what))
        panel.annotate(
            f"{rates[-1]:.3g}",
            (clients[-1], rates[-1]),
            xytext=(7, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontweight="bold",
        )
    _counted(panel, "clients")
    panel.set_ylim(bottom=0)
    panel.margins(x=0.12)
    panel.set_title("Answers a second")
    panel.legend(fontsize=9)


def _latencies(panel: Axes, finding: FindingRecord) -> None:
    for colour, (what, lines) in zip(
        style.COLOURS, _loads(finding, "latency").items(), strict=False
    ):
        clients = [number for number, _ in lines]
        panel.plot(clients, [one.median for _, one in lines], "o-", color=colour, label=what)
        panel.fill_between(
            clients,
            [one.percentile(5) for _, one in lines],
            [one.percentile(95) for _, one in lines],
            color=colour,
            alpha=0.14,
            linewidth=0,
        )
    _counted(panel, "clients")
    _timed(panel)
    panel.set_title("Latency: median, and 5th to 95th percentile")


def _crowds(panel: Axes, finding: FindingRecord) -> None:
    found = [
        (int(match["alive"]), one.series)
        for one in finding.series
        if (match := _CROWD.fullmatch(one.name)) is not None
    ]
    found.sort(key=lambda pair: pair[0])
    alive = [number for number, _ in found]
    for number, one in found:
        panel.scatter(
            [number] * len(one.samples),
            one.samples,
            s=18,
            color=style.OURS,
            alpha=0.3,
            linewidths=0,
        )
    panel.plot(alive, [one.median for _, one in found], "D-", color=style.OURS)
    _counted(panel, "idle clones alive beside it", alive)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.milliseconds(value)))
    panel.set_ylim(bottom=0)
    panel.set_title("A create, with a clone ready")


def _bursts(panel: Axes, finding: FindingRecord) -> None:
    for one in finding.series:
        match = _BURST.fullmatch(one.name)
        if match is None:
            continue
        ordered = sorted(one.samples)
        at_once = int(match["at_once"])
        bursts = max(1, len(ordered) / at_once)
        answered = [(number + 1) / bursts for number in range(len(ordered))]
        panel.step([0.0, *ordered], [0.0, *answered], where="post", color=style.OURS)
        panel.fill_between(
            [0.0, *ordered],
            [0.0, *answered],
            step="post",
            color=style.OURS,
            alpha=0.12,
            linewidth=0,
        )
        panel.set_title(f"{at_once} creates at one moment: answered by")
    panel.xaxis.set_major_locator(MaxNLocator(_BURST_TICKS))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: style.milliseconds(value)))
    panel.set_xlim(left=0)
    panel.set_ylim(bottom=0)
    panel.set_ylabel("answers")


def _counted(panel: Axes, what: str, ticks: list[int] | None = None) -> None:
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}"))
    if ticks:
        panel.set_xticks(ticks)
        panel.minorticks_off()
    panel.set_xlabel(what)


def _timed(panel: Axes) -> None:
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.milliseconds(value)))


_PANELS = (
    ("throughput", ((_rates, r".*: rate"), (_latencies, r".*: latency"))),
    ("crowd", ((_crowds, r"\d+ alive: create"),)),
    ("burst", ((_bursts, r"create, one of"),)),
)
