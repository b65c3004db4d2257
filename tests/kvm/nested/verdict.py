"""Verdict: what the end of a run means: success, failure, or that the host died. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.kvm.nested import report
from tests.kvm.nested.machine import Ending

if TYPE_CHECKING:
    from tests.kvm.nested.machine import Record


def has_died(ending: Ending, record: Record) -> bool:
    """Whether the host's kernel died, and not a test: only then the run counts for nothing.

    Once it said what it lacks, or a test has failed, that stands, whatever became of it afterwards.
    """
    if record.lacking or record.failed or record.report is not None:
        return False
    return ending in {Ending.DIED, Ending.STUCK_AT_BOOT}


def objections(ending: Ending, record: Record) -> list[str]:
    """Return why the run is no success; empty when it is."""
    found = [f"the host has {what}" for what in record.lacking]
    if record.report is not None:
        found += report.objections(record.report.code, report.read(record.report.junit))
    elif not found:
        found.append(f"the host sent no report: {_described(ending, record)}")
        found += [f"failed before: {test}" for test in record.failed]
    if ending is Ending.STUCK_IN_RING and record.report is not None:
        found.append(f"the ring sent its report, but {ending}")
    if record.malformed:
        found.append(f"{record.malformed} lines from the host were no messages")
    return found


def _described(ending: Ending, record: Record) -> str:
    if ending is Ending.HALTED and record.halted is not None:
        return f"the ring's process ended with {record.halted.code}"
    if record.up is None:
        return f"{ending}, and its process 1 never spoke"
    return str(ending)
