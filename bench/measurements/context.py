"""Context: executions in an interpreter that keeps its state, over HTTP, seen by the client.

The first execution makes the context; its time is a series of its own, and so is the second's.
"""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import aiohttp

from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from bench.samples import Target
from vmpool.errors import InfrastructureError, VmpoolError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.subject import Subject

LATER = Target(value=12.0)
EXECUTIONS = 20
"""In each context that a round makes."""
CODE = {"python": "1+1", "bash": "echo $((1+1))"}
_UNAVAILABLE = 400


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Make a sandbox each round, and run the same over and over in it."""
    for turn in pace.turns():
        try:
            async with _sandbox(subject) as sandbox:
                for language in CODE:
                    path = f"/v1/sandboxes/{sandbox}/contexts/{language}/exec"
                    await _run_all(subject, path, language, findings, turn)
        except VmpoolError as err:
            findings.fail(err)


async def _run_all(
    subject: Subject, path: str, language: str, findings: Findings, turn: int
) -> None:
    for number in range(EXECUTIONS):
        took = await _run(subject, path, CODE[language])
        if took is None:
            if not turn:
                findings.remark(f"the image has no contexts of {language}")
            return
        which = "first, makes the context" if not number else "second" if number == 1 else "later"
        target = LATER if (language, which) == ("python", "later") else None
        findings.series(f"{language}: {which}", target=target).add(took)


async def _run(subject: Subject, path: str, code: str) -> float | None:
    """Run code in a context; return how long it took in ms, `None` where there can be none."""
    began = time.perf_counter_ns()
    try:
        async with subject.stand.client.post(path, json={"code": code}) as response:
            answer = await response.read()
    except (aiohttp.ClientError, TimeoutError) as err:
        raise InfrastructureError(f"the request failed: {err!r}") from err
    took = (time.perf_counter_ns() - began) / 1e6
    if response.status == _UNAVAILABLE:
        return None
    if response.status != 200 or b'"2' not in answer or b'"exit_code":0' not in answer:
        raise InfrastructureError(f"the answer is wrong: {response.status} {answer[:500]!r}")
    return took


@contextlib.asynccontextmanager
async def _sandbox(subject: Subject) -> AsyncIterator[str]:
    """Yield the id of a sandbox, which is killed afterwards."""
    client, template = subject.stand.client, subject.template.name
    async with client.post("/v1/sandboxes", json={"template": template}) as response:
        made: dict[str, Any] = json.loads(await response.read())
    if response.status != 201:
        raise InfrastructureError(f"there is no sandbox: {response.status} {str(made)[:500]}")
    try:
        yield made["id"]
    finally:
        async with client.delete(f"/v1/sandboxes/{made['id']}"):
            pass


MEASUREMENT = Measurement(
    name="context",
    summary="1+1 in an interpreter that keeps its state: first, second and later",
    rounds=Rounds(quick=2, full=10),
    weight=2,
    measure=measure,
    chapter=Chapter.SESSION,
)
