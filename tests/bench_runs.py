"""Bench runs: records of benchmarks as tests want them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import msgspec

from bench.charts import style
from bench.record import (
    FindingRecord,
    HostRecord,
    MachineRecord,
    MomentRecord,
    Record,
    SeriesRecord,
    SubjectRecord,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

MOMENT = MomentRecord(unix_ns=1_700_000_000 * 10**9, load=(0.1, 0.1, 0.1), calibration_ms=(10.0,))


def series(name: str, *samples: float, unit: str = "ms", floor: str = "") -> SeriesRecord:
    """Return a series of a record."""
    return SeriesRecord(name=name, unit=unit, samples=list(samples), floor=floor)


def finding(
    measurement: str,
    *found: SeriesRecord,
    calibration_ms: tuple[float, ...] = (10.0, 10.0),
    remarks: tuple[str, ...] = (),
    notes: Mapping[str, object] | None = None,
) -> FindingRecord:
    """Return what a measurement found about the image `base`."""
    return FindingRecord(
        measurement=measurement,
        image="base",
        chapter="in use",
        summary="what it measures",
        conditions={"pool": "one ready"},
        calibration_ms=calibration_ms,
        remarks=list(remarks),
        series=list(found),
        notes=dict(notes or {}),
    )


def run(*findings: FindingRecord, qemu: str = "10.0.2") -> Record:
    """Return a run on a quiet machine."""
    return Record(
        format=2,
        effort="quick",
        complete=True,
        machine=MachineRecord(
            cpu="a processor",
            cores=2,
            memory_bytes=24 << 30,
            kernel="Linux 6.1",
            python="3.11.7",
            vmpool="0.1.0",
        ),
        host=HostRecord(qemu=qemu, accelerator="tcg"),
        before=MOMENT,
        after=MOMENT,
        stolen_share=0.0,
        subjects=[
            SubjectRecord(
                image="base",
                digest="d" * 64,
                machine_type="q35",
                cpu_model="max",
                vcpus=1,
                memory_bytes=256 << 20,
            )
        ],
        findings=list(findings),
    )


def written(record: Record) -> bytes:
    """Return a record as `--json` writes it."""
    return msgspec.json.encode(record)


def open_fonts() -> None:
    """Draw something in each face: matplotlib keeps a font open that it has used once."""
    with style.applied():
        drawn, (panel,) = style.figure(1.0)
        panel.text(0, 0, "$x$")  # formulas, which the ticks of logarithmic axes are at first
        panel.set_title("bold \N{CJK UNIFIED IDEOGRAPH-4E2D}")
        panel.set_xlabel("plain \N{CJK UNIFIED IDEOGRAPH-4E2D}")
        with warnings.catch_warnings(action="ignore"):
            style.png(drawn)
            style.svg(drawn)  # which opens them once more, to draw their outlines
