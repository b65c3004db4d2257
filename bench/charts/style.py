"""Style: how all charts look, and the one place that knows how a figure is made and written."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from matplotlib.axes import Axes
    from matplotlib.typing import RcKeyType

INK = "#1c2733"
FAINT = "#6b7a8a"
RULE = "#dfe5eb"
PAPER = "#ffffff"
OURS = "#0b7285"
"""What is vmpool's, where others are beside it."""

THEIRS = "#a9b4c0"
COLOURS = ("#0b7285", "#e8590c", "#5f3dc4", "#2b8a3e", "#c2255c", "#1971c2", "#f08c00", "#495057")

WIDTH = 9.6
"""Inches of a chart, whose page is wider than a screen's half and narrower than a whole one."""

_DPI = 144

TIMES = "\N{MULTIPLICATION SIGN}"

_SETTINGS: dict[RcKeyType, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.edgecolor": RULE,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "svg.hashsalt": "vmpool",  # the same record gives the same bytes
}


def applied() -> AbstractContextManager[None]:
    """Have what is drawn in a block look as all charts do."""
    return mpl.rc_context(_SETTINGS)


def figure(height: float, *, rows: int = 1, columns: int = 1) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure of so many inches' height, and its panels row by row."""
    made = Figure(figsize=(WIDTH, height), layout="constrained", facecolor=PAPER)
    FigureCanvasAgg(made)
    panels = made.subplots(rows, columns, squeeze=False)
    return made, list(panels.flat)


def svg(drawn: Figure) -> str:
    """Return a figure as an SVG element."""
    out = io.StringIO()
    with applied():
        drawn.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def png(drawn: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file."""
    out = io.BytesIO()
    with applied():
        drawn.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})
    return out.getvalue()


def milliseconds(value: float) -> str:
    """Return a time as a reader takes it in at a glance; given in milliseconds."""
    if value <= 0:
        return "0"
    if value < 0.1:
        return f"{value * 1000:.0f} µs" if value >= 0.01 else f"{value * 1000:.1f} µs"
    if value < 10:
        return f"{value:.2g} ms"
    if value < 1000:
        return f"{value:.0f} ms"
    return f"{value / 1000:.3g} s"


def times_across(panel: Axes) -> None:
    """Give a panel a logarithmic axis of time."""
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: milliseconds(value)))
    panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(visible=False, axis="y")


def shortened(text: str, most: int = 44) -> str:
    """Return a label that fits beside a chart; a stranger's record may have any."""
    plain = "".join(sign if sign.isprintable() and sign != "$" else " " for sign in text)
    return plain if len(plain) <= most else plain[: most - 1] + "…"
