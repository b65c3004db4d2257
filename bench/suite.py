"""Suite: all measurements, in their order, within one time.

Every module of `bench/measurements` is one.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import pkgutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bench import facts, measurements, pages
from bench.measurement import Chapter, Effort, Findings, Measurement, Pace
from bench.stand import open_stand
from bench.subject import Subject, open_subject
from vmpool.config import Settings
from vmpool.errors import VmpoolError
from vmpool.host import HostFacts
from vmpool.image import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


_CHAPTERS = list(Chapter)


def _found() -> tuple[Measurement, ...]:
    names = [module.name for module in pkgutil.iter_modules(measurements.__path__)]
    found = [importlib.import_module(f"{measurements.__name__}.{name}") for name in names]
    return tuple(
        sorted(
            (module.MEASUREMENT for module in found),
            key=lambda one: (_CHAPTERS.index(one.chapter), one.name),
        )
    )


MEASUREMENTS = _found()

SECONDS = {Effort.QUICK: 125.0, Effort.FULL: 1500.0}
"""How long measuring may take once the templates are there; the rounds are cut to fit."""

PREPARING_SECONDS = 600.0
"""How long it may take until they are: half a minute on a quiet machine, under emulation too."""

LEAST_SECONDS = 20.0
"""What every measurement may take, however little is left for it: a boot under emulation."""

OVERTIME = 15.0
"""Seconds after which what does not come to its end is broken off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure, where."""

    settings: Settings
    images: Sequence[Image]
    measurements: Sequence[Measurement]
    effort: Effort


@dataclass(slots=True)
class Outcome:
    """What has been found so far; kept by the caller, so that an interruption loses nothing.

    Attributes:
        subjects: What was measured, as JSON takes it.
        complete: Whether everything that was planned was done.
    """

    host: HostFacts | None = None
    subjects: list[dict[str, object]] = field(default_factory=list)
    findings: list[Findings] = field(default_factory=list)
    complete: bool = False


async def run(plan: Plan, outcome: Outcome, *, progress: Callable[[str], None]) -> None:
    """Carry out a plan; what was started is gone when this returns, raises or is cancelled.

    Raises:
        VmpoolError: Nothing could be measured: as `open_stand` and `open_subject`.
        TimeoutError: It did not come to its end in time.
    """
    seconds = SECONDS[plan.effort]
    async with asyncio.timeout(PREPARING_SECONDS) as limit, contextlib.AsyncExitStack() as up:
        stand = await up.enter_async_context(open_stand(plan.settings, progress=progress))
        outcome.host = stand.host.facts
        subjects = []
        sizes = {size for one in plan.measurements for size in one.memory_sizes}
        for image in plan.images:
            subject = await up.enter_async_context(
                open_subject(stand, image, sizes=sizes, progress=progress)
            )
            subjects.append(subject)
            outcome.subjects.append(await asyncio.to_thread(_describe, subject))
        deadline = time.monotonic() + seconds
        limit.reschedule(asyncio.get_running_loop().time() + seconds + OVERTIME)
        steps = [(subject, one) for subject in subjects for one in plan.measurements]
        while steps:
            (subject, one), weights = steps[0], sum(step.weight for _, step in steps)
            now = time.monotonic()
            pace = Pace(
                rounds=one.rounds.of(plan.effort),
                effort=plan.effort,
                deadline=now + max(0.0, deadline - now) * one.weight / weights,
            )
            progress(f"measuring {one.name} of {subject.image.name}: {one.summary}")
            await _measure(one, subject, pace, outcome, limit=_limit(pace, now))
            del steps[0]
        outcome.complete = not any(found.broken_off for found in outcome.findings)
        progress("killing what was started")


def _limit(pace: Pace, now: float) -> float:
    """Return after how many seconds a measurement is broken off, its share and then some."""
    return LEAST_SECONDS + 2 * (pace.deadline - now)


async def _measure(
    one: Measurement, subject: Subject, pace: Pace, outcome: Outcome, *, limit: float
) -> None:
    """Measure one thing; a failure of it leaves the others their turn, and so does slowness."""
    found = Findings(
        measurement=one.name,
        image=subject.image.name,
        chapter=one.chapter,
        summary=one.summary,
        conditions=one.conditions,
        broken_off="cut short",
    )
    outcome.findings.append(found)
    before = facts.calibrate()
    began = time.monotonic()
    try:
        async with asyncio.timeout(limit):
            await one.measure(subject, pace, found)
        found.broken_off = ""
    except TimeoutError:
        found.broken_off = f"not done after {limit:.0f} s"
    except VmpoolError as err:
        found.broken_off = f"{err} [{err.error_code}]"
    finally:
        found.seconds = time.monotonic() - began
        found.calibration_ms = (before, facts.calibrate())


def _describe(subject: Subject) -> dict[str, object]:
    """Return what is measured, and how much of its files the page cache holds beforehand."""
    spec, memory_file = subject.spec, subject.template.snapshot.memory
    return {
        "image": subject.image.name,
        "digest": subject.image.digest,
        "machine_type": spec.machine_type.value,
        "cpu_model": spec.cpu_model,
        "vcpus": spec.vcpus,
        "disk_bytes": spec.disk_bytes,
        "memory_bytes": spec.memory_bytes,
        "compared_memory_bytes": [one.memory_bytes for one in subject.templates],
        "page_cache": {
            "memory": _cached(memory_file, pages.allocated_bytes(memory_file)),
            "root": _cached(spec.root, spec.root.stat().st_size),
        },
    }


def _cached(file: Path, of_bytes: int) -> dict[str, int]:
    return {"resident_bytes": pages.resident_bytes(file), "of_bytes": of_bytes}
