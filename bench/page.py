"""Page: a run as one HTML file that needs nothing beside it, and carries its record.

What is in a record may be a stranger's words: all of it is escaped, and nothing in the page runs.
"""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench import facts
from bench import record as records
from bench.charts import style
from bench.charts.gallery import CHARTS
from bench.samples import PERCENTILES, Sense

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.record import FindingRecord, Record
    from bench.samples import Series

_TEMPLATE = "page.html.j2"

_HEADLINES = (
    ("create, a clone ready", "create", r"create, a clone ready"),
    ("run to its whole answer", "request", r"alone: client, to the full answer"),
    ("restored from nothing", "restore", r".*MiB: to resumed"),
    ("restored, a hypervisor waits", "restore", r".*: to resumed, from a waiting hypervisor"),
    ("fork: the parent holds still", "fork", r"0 MiB written: paused"),
    ("restores a second", "rate", r"to resumed, with the kill"),
    ("memory of a ready clone", "memory", r"ready: unshared"),
)
"""What it is called; measurement, and the series."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """One of the few numbers at the top."""

    label: str
    value: str
    below: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One series in a table, in words."""

    name: str
    cells: tuple[str, ...]
    target: str
    met: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One chart in the page."""

    name: str
    title: str
    caption: str
    drawing: Markup


COLUMNS = (
    "n",
    "min",
    "p50",
    *(f"p{rank:g}" for rank in PERCENTILES),
    "spread",
    f"{style.TIMES} floor",
)


def render(record: Record) -> str:
    """Return the page of a run; draws all its charts, which takes some seconds."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(
        title=_title(record),
        record=record,
        when=_when(record),
        facts=list(_facts(record)),
        quiet=is_quiet(record),
        headlines=list(_headlines(record)),
        pictures=list(_pictures(record)),
        columns=COLUMNS,
        chapters=[
            (chapter, list(found))
            for chapter, found in groupby(record.findings, key=lambda one: one.chapter)
        ],
        rows=lambda finding: [_row(record, finding, one.series) for one in finding.series],
        peers=_peers(record),
        carried=Markup(records.OPENING + records.embedded(record) + records.CLOSING),
    )


def pictures(record: Record) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of a PNG for each chart that there is something to see in."""
    for chart in CHARTS:
        drawn = chart.drawn(record)
        if drawn is not None:
            yield f"{chart.name}.png", style.png(drawn)


def is_quiet(record: Record) -> bool:
    """Tell whether the machine did nothing else: else the numbers are worse than it can do."""
    medians = [statistics.median(at.calibration_ms) for at in (record.before, record.after)]
    within = [one for finding in record.findings for one in finding.calibration_ms]
    slowest = max([*medians, *within])
    loaded = record.before.load[0] > record.machine.cores / 2
    return not loaded and slowest <= facts.NOISY * record.fastest_calibration_ms


def _when(record: Record) -> str:
    """Return when the run began; a stranger's record may say any number."""
    try:
        began = datetime.fromtimestamp(record.before.unix_ns / 1e9, UTC)
    except (ValueError, OverflowError, OSError):
        return "at an unknown time"
    return began.strftime("%Y-%m-%d %H:%M UTC")


def _title(record: Record) -> str:
    host = record.host
    under = "" if host is None else f", QEMU {host.qemu} under {host.accelerator.upper()}"
    return f"vmpool on {record.machine.cpu}, {record.machine.cores} cores{under}"


def _facts(record: Record) -> Iterator[tuple[str, str]]:
    machine, host = record.machine, record.host
    yield "processor", f"{machine.cpu}, {machine.cores} cores"
    yield "memory", f"{machine.memory_bytes / 1e9:.0f} GB"
    yield "kernel", machine.kernel
    if host is not None:
        yield "hypervisor", f"QEMU {host.qemu} under {host.accelerator}: {host.accelerator_reason}"
        yield "transport", host.transport
    for one in record.subjects:
        cached = ", ".join(
            f"{name} {held.resident_bytes / 1e6:.0f} of {held.of_bytes / 1e6:.0f} MB"
            for name, held in one.page_cache.items()
        )
        yield (
            f"image {one.image}",
            f"{one.digest[:12]}, {one.machine_type}, {one.vcpus} vCPU,"
            f" {one.memory_bytes >> 20} MiB; in the page cache: {cached}",
        )
    yield "vmpool", f"{machine.vmpool} {record.commit}, Python {machine.python}"
    yield "effort", f"{record.effort}, {'complete' if record.complete else 'NOT COMPLETE'}"
    load = f"{record.before.load[0]:.2f} before, {record.after.load[0]:.2f} after"
    yield "load", f"{load}; {100 * record.stolen_share:.1f} % of the time stolen by its own host"


def _headlines(record: Record) -> Iterator[Headline]:
    for label, measurement, pattern in _HEADLINES:
        for finding in list(record.of(measurement))[:1]:
            for one in [each for each in finding.series if re.fullmatch(pattern, each.name)][:1]:
                series = one.series
                below = f"p99 {_value(series.percentile(99), series.unit)}, n={len(series.samples)}"
                yield Headline(label=label, value=_value(series.median, series.unit), below=below)


def _value(value: float, unit: str) -> str:
    if unit == "ms":
        return style.milliseconds(value)
    return f"{value:.3g}" if unit == "1/s" else f"{value:.3g} {unit}"


def _pictures(record: Record) -> Iterator[Picture]:
    for chart in CHARTS:
        drawn = chart.drawn(record)
        if drawn is not None:
            yield Picture(
                name=chart.name,
                title=chart.title,
                caption=chart.caption,
                drawing=Markup(style.svg(drawn)),
            )


def _row(record: Record, finding: FindingRecord, series: Series) -> Row:
    factor = record.floor(finding, series)
    numbers = (min(series.samples), series.median, *map(series.percentile, PERCENTILES))
    target = ""
    if series.target is not None:
        sign = "≤" if series.target.sense is Sense.AT_MOST else "≥"
        target = f"{sign} {series.target.value:g}"
    return Row(
        name=f"{series.name} [{series.unit}]",
        cells=(
            str(len(series.samples)),
            *(f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}" for number in numbers),
            f"{100 * series.spread:.0f} %",
            "" if factor is None else f"{factor:.1f}",
        ),
        target=target,
        met=series.met,
    )


def _peers(record: Record) -> dict[str, str]:
    """Return what exactly each peer does, as the record says."""
    finding = next(record.of("peers"), None)
    said = {} if finding is None else finding.notes.get("peers", {})
    return {str(name): str(words) for name, words in said.items()} if isinstance(said, dict) else {}
