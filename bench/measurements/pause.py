"""Pause: a sandbox put aside and taken up again, and a checkpoint of it, over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.line import LINE
from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from bench.resting import emptied, settle
from bench.sandboxes import ask, held, run_code
from vmpool.errors import VmpoolError
from vmpool.policy import Limits

if TYPE_CHECKING:
    from bench.subject import Subject


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Make a sandbox each round, run code in it, keep it, put it aside, and take it up."""
    async with emptied(subject.pool):
        for _ in pace.turns():
            try:
                await settle(subject.pool, Limits(ready=1, total=2))
                async with held(subject) as sandbox:
                    await _once(subject, sandbox, findings)
            except VmpoolError as err:
                findings.fail(err)


async def _once(subject: Subject, sandbox: str, findings: Findings) -> None:
    path = f"/v1/sandboxes/{sandbox}"
    await run_code(subject, sandbox, LINE, expected="42\n")
    kept = await ask(subject, "POST", f"{path}/checkpoints", {})
    await ask(subject, "DELETE", f"/v1/checkpoints/{kept.values['id']}")
    paused = await ask(subject, "POST", f"{path}/pause", {})
    resumed = await ask(subject, "POST", f"{path}/resume", {})
    first, _ = await run_code(subject, sandbox, LINE, expected="42\n")
    findings.series("checkpoint").add(kept.milliseconds)
    findings.series("checkpoint, on disk", "MB").add(kept.values["size_bytes"] / 1e6)
    findings.series("checkpoint, memory that differs", "MB").add(kept.values["dirty_bytes"] / 1e6)
    findings.series("pause").add(paused.milliseconds)
    findings.series("resume").add(resumed.milliseconds)
    findings.series("first output after a resume").add(first)


MEASUREMENT = Measurement(
    name="pause",
    summary="a sandbox that has run once: checkpoint, pause, resume, over HTTP",
    rounds=Rounds(quick=5, full=40),
    weight=2,
    measure=measure,
    chapter=Chapter.SESSION,
    conditions={"page cache": "warm", "pool": "empty while it is paused"},
)
