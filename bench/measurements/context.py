"""Context: executions in an interpreter that keeps its state, over HTTP, seen by the client.

The first execution makes the context; its time is a series of its own, and so is the second's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from bench.samples import Target
from bench.sandboxes import held, run_in_context
from vmpool.errors import VmpoolError

if TYPE_CHECKING:
    from bench.subject import Subject

LATER = Target(value=12.0)
EXECUTIONS = 20
"""In each context that a round makes."""
CODE = {"python": "1+1", "bash": "echo $((1+1))"}


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Make a sandbox each round, and run the same over and over in it."""
    for turn in pace.turns():
        try:
            async with held(subject) as sandbox:
                for language in CODE:
                    await _run_all(subject, sandbox, language, findings, turn)
        except VmpoolError as err:
            findings.fail(err)


async def _run_all(
    subject: Subject, sandbox: str, language: str, findings: Findings, turn: int
) -> None:
    for number in range(EXECUTIONS):
        took = await run_in_context(subject, sandbox, language, CODE[language])
        if took is None:
            if not turn:
                findings.remark(f"the image has no contexts of {language}")
            return
        which = "first, makes the context" if not number else "second" if number == 1 else "later"
        target = LATER if (language, which) == ("python", "later") else None
        findings.series(f"{language}: {which}", target=target).add(took)


MEASUREMENT = Measurement(
    name="context",
    summary="1+1 in an interpreter that keeps its state: first, second and later",
    rounds=Rounds(quick=2, full=10),
    weight=2,
    measure=measure,
    chapter=Chapter.SESSION,
)
