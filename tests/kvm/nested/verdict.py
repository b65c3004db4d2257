"""Verdict: what the end of a run means: success, failure, or that the host died. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kvm.nested import report
from tests.kvm.nested.machine import Ending

if TYPE_CHECKING:
    from tests.kvm.nested.machine import Record


def has_died(ending: Ending, record: Record) -> bool:
    """Whether the host's kernel died, and not a test: only then the run counts for nothing.

    Once a test has failed it stays failed, whatever became of the host afterwards.
    """
    if record.failed or record.report is not None:
        return False
    return ending in {Ending.DIED, Ending.STUCK_AT_BOOT}


def objections(ending: Ending, record: Record) -> list[str]:
    """Return why the run is no success; empty when it is."""
    found = list(record.lacking)
    if record.report is not None:
        found += report.objections(record.report.code, report.read(record.report.junit))
    elif not found:
        found.append(f"the host sent no report: {ending}")
        found += [f"failed before: {test}" for test in record.failed]
    if ending is not Ending.HALTED and record.report is not None:
        found.append(f"the host sent its report, but {ending}")
    return found
