"""Measurement: one thing that is measured, how much of it, and what was found.

A measurement is a module in `bench/measurements` that ends in one `MEASUREMENT`; the suite finds
it there. It takes samples in rounds until its pace says that it is enough, and cleans up what it
started also when it is cancelled.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from bench.samples import Series
from bench.subject import Subject

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.samples import Target
    from vmpool.errors import VmpoolError

FAILURES_MOST = 3
"""Failed samples after which a measurement is given up: what is left would say nothing."""


class Effort(StrEnum):
    """How much is measured."""

    QUICK = "quick"
    FULL = "full"


class Chapter(StrEnum):
    """Where a measurement stands in the report; they are made in this order."""

    MACHINE = "what the machine allows"
    START = "from nothing"
    USE = "in use"
    SESSION = "sessions"
    SCALE = "many at once"
    COST = "what it takes"
    PEERS = "what else could be run"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """How many rounds of a measurement are enough."""

    quick: int
    full: int

    def of(self, effort: Effort) -> int:
        """Return the rounds of an effort."""
        match effort:
            case Effort.QUICK:
                return self.quick
            case Effort.FULL:
                return self.full


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """So many rounds, and none begun after the deadline but the first.

    Attributes:
        deadline: On the monotonic clock.
        effort: What was asked for, where it decides more than the number of rounds.
    """

    rounds: int
    deadline: float
    effort: Effort = Effort.FULL

    @property
    def over(self) -> bool:
        """Whether its time is up."""
        return time.monotonic() >= self.deadline

    def turns(self) -> Iterator[int]:
        """Yield the numbers of the rounds from 0 on."""
        for turn in range(self.rounds):
            if turn and self.over:
                return
            yield turn


@dataclass(slots=True, kw_only=True)
class Findings:
    """What one measurement found about one image.

    Attributes:
        summary: What was measured, in words.
        conditions: What the numbers hold under, by name: `pool`, `page cache` and the like.
        calibration_ms: One fixed piece of work on one core, right before and right after.
        notes: Raw data beside the series, as JSON takes it.
        remarks: What a reader of the table must know, a line each.
        failures: Samples that failed, in words; they are in no series.
        broken_off: Why it ended before its time; empty when it did not.
    """

    measurement: str
    image: str
    chapter: Chapter = Chapter.USE
    summary: str = ""
    conditions: Mapping[str, str] = field(default_factory=dict)
    calibration_ms: tuple[float, ...] = ()
    all_series: list[Series] = field(default_factory=list)
    notes: dict[str, object] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0
    broken_off: str = ""

    def series(
        self, name: str, unit: str = "ms", target: Target | None = None, floor: str = ""
    ) -> Series:
        """Return the series `name`, new when it is first asked for.

        Args:
            floor: Name of a series of the measurement `floors`, in the same unit.
        """
        for known in self.all_series:
            if known.name == name:
                return known
        self.all_series.append(Series(name, unit, target, floor=floor))
        return self.all_series[-1]

    def remark(self, words: str) -> None:
        """Note what is to be read beside the numbers."""
        self.remarks.append(words)

    def fail(self, err: VmpoolError) -> None:
        """Note a sample that failed.

        Raises:
            VmpoolError: `err`, when it is one too many.
        """
        self.failures.append(f"{err} [{err.error_code}]")
        if len(self.failures) >= FAILURES_MOST:
            raise err

    def as_data(self) -> dict[str, object]:
        """Return all of it as JSON takes it."""
        return {
            "measurement": self.measurement,
            "image": self.image,
            "chapter": self.chapter,
            "summary": self.summary,
            "conditions": dict(self.conditions),
            "calibration_ms": self.calibration_ms,
            "seconds": round(self.seconds, 3),
            "broken_off": self.broken_off,
            "remarks": self.remarks,
            "failures": self.failures,
            "series": [series.as_data() for series in self.all_series if series.samples],
            "notes": self.notes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One thing that is measured.

    Attributes:
        name: What `--only` takes.
        summary: What is measured, for `--help` and the table.
        rounds: When it has enough.
        weight: Its share of the time, against the others'.
        chapter: Where it stands.
        conditions: What its numbers hold under, by name, where no two of its series differ.
        memory_sizes: Sizes in bytes that it needs templates of, beside the one of the recipe.
        measure: Takes the samples. May raise a `VmpoolError`; what was found by then is kept.
    """

    name: str
    summary: str
    rounds: Rounds
    weight: float
    measure: Callable[[Subject, Pace, Findings], Awaitable[None]]
    memory_sizes: tuple[int, ...] = ()
    chapter: Chapter = Chapter.USE
    conditions: Mapping[str, str] = field(default_factory=dict)
