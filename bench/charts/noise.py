"""Noise: how fast the machine itself was while each measurement was made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.charts import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bench.record import Record


def draw(record: Record) -> Figure | None:
    """Draw the calibration along the run, as multiples of the fastest; `None` without any."""
    within = [one for one in record.findings if one.calibration_ms]
    if not within:
        return None
    fastest = record.fastest_calibration_ms
    drawn, (panel,) = style.figure(2.9)
    before, after = record.before.calibration_ms, record.after.calibration_ms
    stops = [
        ("before", before),
        *((one.measurement, one.calibration_ms) for one in within),
        ("after", after),
    ]
    for column, (_, taken) in enumerate(stops):
        ratios = [took / fastest for took in taken]
        panel.scatter(
            [column] * len(ratios), ratios, s=22, color=style.OURS, alpha=0.5, linewidths=0
        )
    panel.axhspan(1.0, 1.2, color=style.OURS, alpha=0.08, linewidth=0)
    names = [style.shortened(name, 14) for name, _ in stops]
    panel.set_xticks(range(len(stops)), names, rotation=40, ha="right")
    panel.set_ylim(bottom=0.9)
    panel.set_ylabel("times the fastest")
    panel.grid(visible=False, axis="x")
    panel.set_title("A fixed piece of work on one core, around each measurement")
    return drawn
