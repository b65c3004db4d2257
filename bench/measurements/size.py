"""Size: what a template's snapshot takes on disk, and how much of it is zero."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from bench import pages
from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from bench.subject import LARGE_BYTES, SMALL_BYTES

if TYPE_CHECKING:
    from bench.subject import Subject


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:  # noqa: ARG001 -- one look is enough
    """Look at every template's files once."""
    for template in subject.templates:
        files = sorted(template.snapshot.manifest.files)
        allocated = {
            name: pages.allocated_bytes(template.snapshot.directory / name) for name in files
        }
        survey = await asyncio.to_thread(pages.survey, template.snapshot.memory)
        findings.notes[template.size] = {"allocated_bytes": allocated, "memory": survey.as_data()}
        size = template.size
        findings.series(f"{size}: on disk", "MB").add(sum(allocated.values()) / 1e6)
        findings.series(f"{size}: zero pages of memory", "%").add(100 * survey.zero_share)
        findings.series(f"{size}: zero pages on disk", "%").add(100 * survey.stored_zero_share)


MEASUREMENT = Measurement(
    name="size",
    summary="a snapshot's files on disk, and their zero pages",
    rounds=Rounds(quick=1, full=1),
    weight=0.2,
    measure=measure,
    chapter=Chapter.COST,
    memory_sizes=(SMALL_BYTES, LARGE_BYTES),
)
