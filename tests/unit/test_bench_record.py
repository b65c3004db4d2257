"""A run that is read again says what it said, and a stranger's file says nothing but samples."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from bench import record
from bench.facts import Machine, Moment
from bench.measurement import Chapter, Effort, Findings
from bench.report import Report
from bench.samples import Sense, Target
from bench.suite import Outcome
from tests import bench_runs
from vmpool.errors import InvalidRequestError

RESULTS = Path(record.__file__).parent / "results"
RUN = bench_runs.run(bench_runs.finding("create", bench_runs.series("kill", 1.0, 2.0)))


def refusal(path: Path) -> str:
    with pytest.raises(InvalidRequestError) as raised:
        record.load(path)
    assert raised.value.error_code == "bench_record_damaged"
    return raised.value.message


def test_what_a_run_writes_is_read_again(tmp_path: Path) -> None:
    found = Findings(measurement="create", image="base", chapter=Chapter.USE, calibration_ms=(1.0,))
    target = Target(value=3.0, sense=Sense.AT_LEAST)
    found.series("rate", "1/s", target, floor="HTTP").add(2.0)
    moment = Moment(unix_ns=5, load=(0.0, 0.0, 0.0), calibration_ms=(2.0,), cpu_ticks={"steal": 0})
    report = Report(
        effort=Effort.FULL,
        machine=Machine(
            cpu="x", cores=2, memory_bytes=1, kernel="Linux", python="3.11", vmpool="0"
        ),
        before=moment,
        after=moment,
        outcome=Outcome(findings=[found]),
        commit="abc",
    )
    path = tmp_path / "run.json"
    path.write_text(json.dumps(report.as_data()))
    held = record.load(path)
    assert (held.effort, held.commit, held.fastest_calibration_ms) == ("full", "abc", 1.0)
    (read,) = held.findings[0].series
    assert read.series == found.series("rate")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_every_run_that_was_published_can_be_read(path: Path) -> None:
    held = record.load(path)
    assert all(one.series for one in held.findings)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "truncated"),
        (b"[]", "Expected `object`"),
        (b"<html><p>a page of something else", "carries no record"),
        (b'{"format": 2}', "missing required field"),
        (bench_runs.written(msgspec.structs.replace(RUN, format=3)), "of a later vmpool"),
        (bench_runs.written(RUN).replace(b"[1.0,2.0]", b"[]"), "length >= 1"),
        (bench_runs.written(RUN).replace(b"[1.0,2.0]", b"[1e999]"), "out of range"),
        (b'{"x": ' + b"[" * 100_000, "recursion"),
    ],
    ids=["empty", "list", "page", "lacking", "later", "no samples", "infinite", "deep"],
)
def test_what_is_no_record_is_refused(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(content)
    assert why in refusal(path)


def test_a_file_that_is_too_large_is_not_taken_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    path.write_bytes(bench_runs.written(RUN))
    monkeypatch.setattr(record, "FILE_BYTES", path.stat().st_size)
    record.load(path)
    monkeypatch.setattr(record, "FILE_BYTES", path.stat().st_size - 1)
    assert "more than" in refusal(path)


def test_a_number_is_a_multiple_of_its_floor_in_the_same_unit() -> None:
    ours = bench_runs.series("create", 6.0, floor="HTTP round trip")
    held = bench_runs.run(
        bench_runs.finding("create", ours),
        bench_runs.finding("floors", bench_runs.series("HTTP round trip", 2.0)),
    )
    assert held.floor(held.findings[0], ours.series) == 3.0
    elsewhere = bench_runs.series("HTTP round trip", 2.0, unit="µs")
    held = bench_runs.run(
        bench_runs.finding("create", ours), bench_runs.finding("floors", elsewhere)
    )
    assert held.floor(held.findings[0], ours.series) is None
