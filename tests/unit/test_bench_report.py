"""What a reader must know beside the numbers stands in the table and in the data."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.facts import Machine, Moment
from bench.measurement import Effort, Findings
from bench.report import Report
from bench.suite import Outcome

QUIET = Moment(
    unix_ns=0, load=(0.0, 0.0, 0.0), calibration_ms=(10.0, 11.0, 12.0), cpu_ticks={"steal": 0}
)
NOT_QUIET = "NOT QUIET"


def table(found: Findings, *, before: Moment = QUIET, after: Moment = QUIET) -> str:
    """Return what is printed of a run."""
    machine = Machine(cpu="x", cores=2, memory_bytes=1, kernel="Linux", python="3.11", vmpool="0")
    outcome = Outcome(findings=[found])
    return Report(
        effort=Effort.QUICK, machine=machine, before=before, after=after, outcome=outcome
    ).render()


def test_what_was_skipped_is_told_below_what_was_measured() -> None:
    found = Findings(measurement="firmware", image="base")
    found.series("q35, tcg: load").add(4.0)
    found.remark("q35, kvm: skipped: cannot open /dev/kvm")
    lines = table(found).splitlines()
    row = next(number for number, line in enumerate(lines) if "q35, tcg: load" in line)
    assert lines[row + 1].strip() == "q35, kvm: skipped: cannot open /dev/kvm"
    assert found.as_data()["remarks"] == ["q35, kvm: skipped: cannot open /dev/kvm"]


def test_a_machine_that_did_nothing_else_is_not_complained_of() -> None:
    found = Findings(measurement="create", image="base", calibration_ms=(10.0, 14.0))
    assert NOT_QUIET not in table(found)


@pytest.mark.parametrize(
    ("before", "within", "after"),
    [
        (QUIET, (10.0, 16.0), QUIET),
        (QUIET, (10.0,), replace(QUIET, calibration_ms=(16.0, 16.0))),
        (replace(QUIET, load=(1.5, 0.0, 0.0)), (10.0,), QUIET),
    ],
    ids=["meanwhile", "afterwards", "loaded"],
)
def test_a_machine_that_did_something_else_is_said_to_have(
    before: Moment, within: tuple[float, ...], after: Moment
) -> None:
    found = Findings(measurement="create", image="base", calibration_ms=within)
    assert NOT_QUIET in table(found, before=before, after=after)
