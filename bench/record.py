"""Record: one run of the benchmark as it is kept, shared and read again.

A file is the JSON that `--json` writes, or the page that `report` makes, which carries that JSON.
It may be a stranger's: its size is bounded and its shape checked, and whatever it says about its
samples is worked out anew from them.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from bench.samples import Sense, Series, Target
from vmpool.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FORMATS = (1, 2)
"""Versions of the data that are read; the last one is written."""

FILE_BYTES = 64 << 20
SAMPLES_MOST = 200_000

OPENING = '<script type="application/json" id="record">'
CLOSING = "</script>"
"""Between which a page carries its record."""

Words = Annotated[str, Meta(max_length=10_000)]


class TargetRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a median was meant to reach."""

    sense: Sense
    value: float


class SeriesRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The samples of one quantity."""

    name: Words
    unit: Annotated[str, Meta(max_length=40)]
    samples: Annotated[list[float], Meta(min_length=1, max_length=SAMPLES_MOST)]
    target: TargetRecord | None = None
    floor: Words = ""

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self.samples)):
            raise ValueError(f"series {self.name!r} has a sample that is no number")

    @property
    def series(self) -> Series:
        """The same to be reckoned with."""
        given = self.target
        target = None if given is None else Target(value=given.value, sense=given.sense)
        return Series(self.name, self.unit, target, list(self.samples), self.floor)


class FindingRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one measurement found about one image; as `Findings` has it."""

    measurement: Words
    image: Words
    chapter: Words = ""
    summary: Words = ""
    conditions: dict[str, str] = {}
    calibration_ms: tuple[float, ...] = ()
    seconds: float = 0.0
    broken_off: Words = ""
    remarks: list[Words] = []
    failures: list[Words] = []
    series: list[SeriesRecord]
    notes: dict[str, Any] = {}

    def named(self, name: str) -> Series | None:
        """Return a series, `None` when there is none of that name."""
        return next((one.series for one in self.series if one.name == name), None)


class MachineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The machine; as `facts.Machine` has it."""

    cpu: Words
    cores: int
    memory_bytes: int
    kernel: Words
    python: Words
    vmpool: Words


class HostRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What runs guests there."""

    qemu: Words
    accelerator: Words
    accelerator_reason: Words = ""
    transport: Words = ""


class MomentRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How busy the machine was; as `facts.Moment` has it."""

    unix_ns: int
    load: tuple[float, float, float]
    calibration_ms: Annotated[tuple[float, ...], Meta(min_length=1)]


class CachedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a file the page cache held."""

    resident_bytes: int
    of_bytes: int


class SubjectRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An image that was measured, and the machine that its clones are."""

    image: Words
    digest: Words
    machine_type: Words
    cpu_model: Words
    vcpus: int
    memory_bytes: int
    disk_bytes: int = 0
    page_cache: dict[str, CachedRecord] = {}


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One run.

    Attributes:
        commit: Of the checkout, with a plus when it had changes; empty where it is not known.
    """

    format: int
    effort: Words
    complete: bool
    machine: MachineRecord
    host: HostRecord | None
    before: MomentRecord
    after: MomentRecord
    stolen_share: float
    subjects: list[SubjectRecord]
    findings: list[FindingRecord]
    commit: Words = ""

    def of(self, measurement: str) -> Iterator[FindingRecord]:
        """Yield what a measurement found, image by image."""
        return (one for one in self.findings if one.measurement == measurement)

    @property
    def fastest_calibration_ms(self) -> float:
        """The least that the fixed piece of work took at any time of the run."""
        within = [took for one in self.findings for took in one.calibration_ms]
        return min([*self.before.calibration_ms, *self.after.calibration_ms, *within])

    def floor(self, finding: FindingRecord, series: Series) -> float | None:
        """Return how many times its floor the median of a series is; `None` without one."""
        if not series.floor:
            return None
        for one in self.findings:
            found = one.named(series.floor) if one.image == finding.image else None
            if found is not None and found.unit == series.unit and found.median > 0:
                return series.median / found.median
        return None


def load(path: Path) -> Record:
    """Read a run's file, JSON or page. Blocks.

    Raises:
        InvalidRequestError: `bench_record_damaged`: it is none, or of a later version.
    """
    try:
        with path.open("rb") as file:
            held = file.read(FILE_BYTES + 1)
    except OSError as err:
        raise _damaged(path, err.strerror or str(err)) from err
    if len(held) > FILE_BYTES:
        raise _damaged(path, f"it has more than {FILE_BYTES >> 20} MiB")
    if held.lstrip().startswith(b"<"):
        _, found, held = held.partition(OPENING.encode())
        if not found:
            raise _damaged(path, "the page carries no record")
        held = held.partition(CLOSING.encode())[0]
    try:
        record = msgspec.json.decode(held, type=Record)
    except (msgspec.DecodeError, RecursionError) as err:
        raise _damaged(path, str(err)) from err
    if record.format not in FORMATS:
        raise _damaged(path, f"it is of format {record.format}, of a later vmpool")
    return record


def embedded(record: Record) -> str:
    """Return a record as a page may carry it: no text in it can end the element that it is in."""
    return msgspec.json.encode(record).decode().replace("<", "\\u003c")


def _damaged(path: Path, why: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"cannot read a benchmark's record from {str(path)!r}: {why}",
        code="bench_record_damaged",
        remedy="give a file that `vmpool bench --json` or `vmpool bench report` has written",
    )
