"""What a reader must know beside the numbers stands in the table and in the data."""

from __future__ import annotations

from bench.facts import Machine, Moment
from bench.measurement import Effort, Findings
from bench.report import Report
from bench.suite import Outcome


def test_what_was_skipped_is_told_below_what_was_measured() -> None:
    found = Findings(measurement="firmware", image="base")
    found.series("q35, tcg: load").add(4.0)
    found.remark("q35, kvm: skipped: cannot open /dev/kvm")
    moment = Moment(unix_ns=0, load=(0.0, 0.0, 0.0), calibration_ms=(1.0,), cpu_ticks={"steal": 0})
    report = Report(
        effort=Effort.QUICK,
        machine=Machine(
            cpu="x", cores=2, memory_bytes=1, kernel="Linux", python="3.11", vmpool="0"
        ),
        before=moment,
        after=moment,
        outcome=Outcome(findings=[found]),
    )
    lines = report.render().splitlines()
    row = next(number for number, line in enumerate(lines) if "q35, tcg: load" in line)
    assert lines[row + 1].strip() == "q35, kvm: skipped: cannot open /dev/kvm"
    assert found.as_data()["remarks"] == ["q35, kvm: skipped: cannot open /dev/kvm"]
