"""Pure: code that waits for nothing, timed by pytest-benchmark in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.measurement import Chapter, Findings, Measurement, Pace, Rounds
from vmpool.errors import InfrastructureError

if TYPE_CHECKING:
    from bench.subject import Subject

TESTS = Path(__file__).parent.parent / "test_pure.py"
TIMEOUT = 60.0
SECONDS = 0.1
"""Of each of them, a round."""
SAMPLES_MOST = 400
"""Of each, spread over all that were taken: pytest-benchmark takes ten thousands."""


async def measure(subject: Subject, pace: Pace, findings: Findings) -> None:  # noqa: ARG001 -- pure
    """Run the tests once a round, and keep what pytest-benchmark says of them beside."""
    for turn in pace.turns():
        with tempfile.TemporaryDirectory(prefix="vmpool-") as directory:
            said = await _benchmarked(Path(directory) / "benchmark.json", findings)
        if said is None:
            return
        for one in said["benchmarks"]:
            taken = one["stats"]["data"]
            step = -(-len(taken) // SAMPLES_MOST)
            series = findings.series(_words(one["name"]), unit="µs")
            for seconds in taken[::step]:
                series.add(seconds * 1e6)
            del one["stats"]["data"]
        findings.notes[f"pytest-benchmark, round {turn}"] = said


def _words(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


async def _benchmarked(file: Path, findings: Findings) -> dict[str, Any] | None:
    """Run pytest-benchmark; return its JSON, `None` when it is not installed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS)),
        *(f"--benchmark-json={file}", f"--benchmark-max-time={SECONDS}"),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=DEVNULL,
        cwd=TESTS.parent.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            said, _ = await process.communicate()
    except TimeoutError as err:
        raise InfrastructureError("pytest-benchmark did not end in time") from err
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if b"No module named" in said or process.returncode == 4:  # pytest: usage error
        findings.remark("skipped: pytest-benchmark is not installed")
        return None
    if process.returncode:
        raise InfrastructureError(f"the tests failed: {said[-300:].decode(errors='replace')}")
    parsed: dict[str, Any] = json.loads(await asyncio.to_thread(file.read_text))
    return parsed


MEASUREMENT = Measurement(
    name="pure",
    summary="code that waits for nothing, by pytest-benchmark",
    rounds=Rounds(quick=1, full=3),
    weight=1,
    measure=measure,
    chapter=Chapter.MACHINE,
)
