"""Outputs: what a sandbox's first runs of code cost, each a number of its own.

The first run translates and touches what no run in this clone has; the second finds it there; an
import finds the library in the snapshot, in memory or only on disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.line import LINE
from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from bench.measurements.floors import HTTP
from bench.resting import emptied, settle
from bench.sandboxes import held, run_code
from vmpool.errors import VmpoolError
from vmpool.policy import Limits

if TYPE_CHECKING:
    from bench.subject import Subject

IMPORT = "import numpy; print(int(numpy.arange(4).sum()))"
LIBRARY = "python3-numpy"
"""The package that an image must have for it."""

MORE_RUNS = 5
"""After the second, all of one series: a round trip of an execution."""


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Run code in a fresh sandbox each round."""
    async with emptied(subject.pool):
        for turn in pace.turns():
            try:
                await settle(subject.pool, Limits(ready=1, total=1))
                async with held(subject) as sandbox:
                    await _once(subject, sandbox, findings)
                    await _import(subject, sandbox, findings, turn)
            except VmpoolError as err:
                findings.fail(err)


async def _once(subject: Subject, sandbox: str, findings: Findings) -> None:
    for number in range(2 + MORE_RUNS):
        which = ("first", "second", "later")[min(number, 2)]
        first, end = await run_code(subject, sandbox, LINE, expected="42\n")
        findings.series(f"{which} run: first output", floor=HTTP).add(first)
        findings.series(f"{which} run: end", floor=HTTP).add(end)


async def _import(subject: Subject, sandbox: str, findings: Findings, turn: int) -> None:
    if LIBRARY not in subject.image.manifest.packages:
        if not turn:
            findings.remark("import numpy: skipped: the image has none")
        return
    first, _ = await run_code(subject, sandbox, IMPORT, expected="6\n")
    findings.series("import numpy and use it: first output").add(first)


MEASUREMENT = Measurement(
    name="outputs",
    summary="code in a new sandbox: its first run, its second, later ones, an import",
    rounds=Rounds(quick=8, full=60),
    weight=3,
    measure=measure,
    chapter=Chapter.USE,
    conditions={"page cache": "warm", "pool": "one ready clone, no refill"},
)
