"""Memory: what one more clone takes for itself, by what it is for."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from bench.charts import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bench.record import Record

_UNSHARED = ": unshared"


def draw(record: Record) -> Figure | None:
    """Draw a bar for each moment that was looked at; `None` without any."""
    finding = next(record.of("memory"), None)
    moments = {} if finding is None else _moments(finding.notes)
    if not moments:
        return None
    drawn, (panel,) = style.figure(1.6 + 0.55 * len(moments))
    kinds = list(dict.fromkeys(kind for parts in moments.values() for kind in parts))
    for row, parts in enumerate(reversed(moments.values())):
        at = 0.0
        for colour, kind in zip(style.COLOURS, kinds, strict=False):
            took = parts.get(kind, 0.0)
            panel.barh(row, took, left=at, height=0.62, color=colour, edgecolor=style.PAPER)
            if took > 1.5:
                panel.text(
                    at + took / 2,
                    row,
                    f"{took:.1f}",
                    ha="center",
                    va="center",
                    color=style.PAPER,
                    fontsize=9,
                )
            at += took
        panel.text(at + 0.4, row, f"{at:.1f} MB", va="center", fontweight="bold")
    for colour, kind in zip(style.COLOURS, kinds, strict=False):
        panel.barh(0, 0, color=colour, label=style.shortened(kind))
    longest = max(sum(parts.values()) for parts in moments.values())
    panel.set_xlim(0, longest * 1.12)
    panel.set_yticks(range(len(moments)), [style.shortened(name) for name in reversed(moments)])
    panel.tick_params(axis="y", length=0, labelcolor=style.INK)
    panel.grid(visible=False, axis="y")
    panel.spines["left"].set_visible(False)
    panel.set_xlabel("MB of its own, median of the clones")
    panel.set_title("One more clone")
    drawn.legend(loc="outside lower center", ncols=len(kinds), fontsize=9, handlelength=0.9)
    return drawn


def _moments(notes: dict[str, object]) -> dict[str, dict[str, float]]:
    """Return the median megabytes of each kind at each moment; what is no such thing is left."""
    found = {}
    for name, clones in notes.items():
        if not isinstance(clones, list) or not clones:
            continue
        kinds = [kind for kind in clones[0] if isinstance(clones[0], dict)]
        parts = {kind: _median([_private(one, kind) for one in clones]) for kind in kinds}
        if any(parts.values()):
            found[name] = parts
    return found


def _private(clone: object, kind: str) -> float:
    part = clone.get(kind) if isinstance(clone, dict) else None
    private = part.get("private_bytes") if isinstance(part, dict) else None
    return private / 1e6 if isinstance(private, int) else 0.0


def _median(values: list[float]) -> float:
    return statistics.median(values)
