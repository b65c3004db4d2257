"""Comparison: what became slower from one run to another, beyond what noise explains.

Pure. Two things must hold for a verdict. The intervals in which the two medians lie, each at 99 %
confidence by the order of its samples and nothing assumed about their distribution, must not meet;
and the gap between them must be larger than what the machine itself was slower by at the time,
which the calibration loops around each measurement say.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.record import FindingRecord, Record
    from bench.samples import Series

CONFIDENCE = 0.99
MARGIN = 0.05
"""The least difference that is worth a word, and what two quiet runs may differ by."""

_RATES = frozenset({"1/s"})
_UNJUDGED = frozenset({"%"})


class Verdict(StrEnum):
    """What can be said of one series."""

    SLOWER = "slower"
    FASTER = "faster"
    LARGER = "larger"
    SMALLER = "smaller"
    SAME = "no difference beyond the noise"
    TOO_FEW = "too few samples"


WORSE = frozenset({Verdict.SLOWER, Verdict.LARGER})


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One series in both runs.

    Attributes:
        factor: The second median over the first; for rates the other way round, so that more than
            1 is always worse.
        low, high: Between which the true factor lies.
        margin: What the machine may account for, as a share.
    """

    measurement: str
    image: str
    name: str
    unit: str
    before: float
    after: float
    factor: float
    low: float
    high: float
    margin: float
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two runs beside each other.

    Attributes:
        unlike: What was not the same in both, in words; any of it may be the cause.
        differences: The worst first.
        alone: Series that only one of the runs has.
    """

    unlike: tuple[str, ...]
    differences: tuple[Difference, ...]
    alone: int

    @property
    def worse(self) -> tuple[Difference, ...]:
        """What became slower or larger."""
        return tuple(one for one in self.differences if one.verdict in WORSE)


def compare(before: Record, after: Record) -> Comparison:
    """Compare all series that two runs have in common."""
    first, second = _series(before), _series(after)
    fastest = min(before.fastest_calibration_ms, after.fastest_calibration_ms)
    found = []
    for key, (finding, series) in first.items():
        if key not in second or series.unit in _UNJUDGED:
            continue
        other, later = second[key]
        if later.unit != series.unit or not _positive(series) or not _positive(later):
            continue
        margin = max(MARGIN, _slowdown(finding, fastest), _slowdown(other, fastest))
        found.append(_difference(finding, series, later, margin))
    return Comparison(
        unlike=_unlike(before, after),
        differences=tuple(sorted(found, key=lambda one: -one.factor)),
        alone=len(first.keys() ^ second.keys()),
    )


def interval(samples: list[float]) -> tuple[float, float] | None:
    """Return between which two samples the median lies, at `CONFIDENCE` or more.

    `None` when there are too few: not even the smallest and the largest would do.
    """
    ordered, tail, rank = sorted(samples), 0.0, -1
    for below in range(len(ordered) // 2):
        # Of n samples each lies below the true median with probability one half.
        tail += math.comb(len(ordered), below) / 2 ** len(ordered)
        if tail > (1 - CONFIDENCE) / 2:
            break
        rank = below
    return None if rank < 0 else (ordered[rank], ordered[-1 - rank])


def _difference(finding: FindingRecord, first: Series, second: Series, margin: float) -> Difference:
    bounds, later = interval(_bounded(first.samples)), interval(_bounded(second.samples))
    factor = second.median / first.median
    if first.unit in _RATES:
        factor = 1 / factor
    low = high = factor
    verdict = Verdict.TOO_FEW
    if bounds is not None and later is not None:
        low, high = later[0] / bounds[1], later[1] / bounds[0]
        if first.unit in _RATES:
            low, high = 1 / high, 1 / low
        verdict = _verdict(low, high, margin, first.unit)
    return Difference(
        measurement=finding.measurement,
        image=finding.image,
        name=first.name,
        unit=first.unit,
        before=first.median,
        after=second.median,
        factor=factor,
        low=low,
        high=high,
        margin=margin,
        verdict=verdict,
    )


def _verdict(low: float, high: float, margin: float, unit: str) -> Verdict:
    sizes = unit == "MB"
    if low > 1 + margin:
        return Verdict.LARGER if sizes else Verdict.SLOWER
    if high < 1 / (1 + margin):
        return Verdict.SMALLER if sizes else Verdict.FASTER
    return Verdict.SAME


def _bounded(samples: list[float]) -> list[float]:
    """Return so many of the samples that the binomial stays a number, spread over all of them."""
    step = -(-len(samples) // 1000)
    return samples[::step]


def _slowdown(finding: FindingRecord, fastest: float) -> float:
    """Return by which share the machine was slower around a measurement than it can be."""
    return max(finding.calibration_ms, default=fastest) / fastest - 1


def _positive(series: Series) -> bool:
    return min(series.samples) > 0


def _series(record: Record) -> dict[tuple[str, str, str], tuple[FindingRecord, Series]]:
    return {
        (finding.measurement, finding.image, one.name): (finding, one.series)
        for finding in record.findings
        for one in finding.series
    }


def _unlike(before: Record, after: Record) -> tuple[str, ...]:
    first, second = _dimensions(before), _dimensions(after)
    return tuple(
        f"{name}: {first.get(name, 'none')}, then {second.get(name, 'none')}"
        for name in sorted(first.keys() | second.keys())
        if first.get(name) != second.get(name)
    )


def _dimensions(record: Record) -> dict[str, str]:
    machine, host = record.machine, record.host
    named = {
        "processor": machine.cpu,
        "cores": str(machine.cores),
        "memory": f"{machine.memory_bytes >> 20} MiB",
        "kernel": machine.kernel,
        "Python": machine.python,
        "effort": record.effort,
    }
    if host is not None:
        named |= {"QEMU": host.qemu, "accelerator": host.accelerator, "transport": host.transport}
    for one in record.subjects:
        named[f"image {one.image}"] = one.digest[:12]
        named[f"machine of {one.image}"] = (
            f"{one.machine_type}, {one.cpu_model}, {one.vcpus} vCPU, {one.memory_bytes >> 20} MiB"
        )
    return named
