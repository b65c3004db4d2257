"""Rate: restores a second when all cores do nothing else, kills included.

As many restores run at one time as the host allows itself. One pass to resumed, one to ready, in
turn; a pass counts from its first spawn to its last reaped process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from typing import TYPE_CHECKING

from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from bench.samples import Sense, Target
from vmpool.errors import VmpoolError
from vmpool.model import Attachment, new_id

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bench.subject import Subject

SUSTAINED = Target(value=10.0, sense=Sense.AT_LEAST)
CLONES = 24
"""Of one pass: so many that its beginning and end, when not all cores work, weigh little."""

PASS_SECONDS = 6.0
"""After which a pass begins no more, on a machine that is slow or busy."""


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:
    """Run passes of both kinds in turn."""
    passes: list[dict[str, object]] = []
    findings.notes |= {"at_one_time": _at_one_time(), "passes": passes}
    kinds: tuple[tuple[str, Callable[[Subject], Awaitable[None]], Target | None], ...] = (
        ("to resumed", _to_resumed, SUSTAINED),
        ("to ready", _to_ready, None),
    )
    for _ in pace.turns():
        for name, once, target in kinds:
            seconds, failed = await _pass(once, subject)
            for err in failed:
                findings.fail(err)
            if not seconds:
                continue
            passes.append({"kind": name, "ended_at_s": seconds})
            rate = len(seconds) / seconds[-1]
            findings.series(f"{name}, with the kill", "1/s", target).add(rate)


def _at_one_time() -> int:
    return max(2, os.cpu_count() or 1)  # as `opening.open_host` has it


async def _pass(
    once: Callable[[Subject], Awaitable[None]], subject: Subject
) -> tuple[list[float], list[VmpoolError]]:
    """Do `once` for each clone of a pass.

    Returns:
        When each was over, in seconds from the start, and the failures; each ends one worker.
    """
    left = iter(range(CLONES))
    ended: list[float] = []
    failed: list[VmpoolError] = []
    began = time.perf_counter()

    async def work() -> None:
        for _ in left:
            try:
                await once(subject)
            except VmpoolError as err:
                failed.append(err)
                return
            ended.append(time.perf_counter() - began)
            if ended[-1] > PASS_SECONDS:
                return

    async with asyncio.TaskGroup() as workers:
        for _ in range(_at_one_time()):
            workers.create_task(work())
    return ended, failed


async def _to_ready(subject: Subject) -> None:
    restored = await subject.restore(subject.template)
    await restored.kill()


async def _to_resumed(subject: Subject) -> None:
    """Do the first three phases of a restore, and kill."""
    stand, template = subject.stand, subject.template.snapshot
    directory = stand.clones / new_id()
    async with contextlib.AsyncExitStack() as undo:
        directory.mkdir(mode=0o700)
        undo.callback(shutil.rmtree, directory, ignore_errors=True)
        shell = await stand.engine.prepare(template, Attachment(directory=directory))
        undo.push_async_callback(shell.kill)
        machine = await shell.load(template)
        await machine.resume()


MEASUREMENT = Measurement(
    name="rate",
    summary="restores a second on all cores, kills included",
    rounds=Rounds(quick=2, full=8),
    weight=3,
    measure=measure,
    chapter=Chapter.SCALE,
)
