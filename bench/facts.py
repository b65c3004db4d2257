"""Facts: the machine that was measured on, and how quiet it was. All of it blocks."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

CALIBRATION_RUNS = 15
CALIBRATION_STEPS = 300_000
NOISY = 1.5
"""A calibration that took this many times the fastest is of a machine that did something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What does not change while we measure."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    vmpool: str

    def as_data(self) -> dict[str, object]:
        """Return all of it by name."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """How busy the machine was.

    Attributes:
        load: Load averages of 1, 5 and 15 minutes.
        calibration_ms: One fixed piece of work on one core, each time that it was done. On a quiet
            machine these agree with each other and with those of another moment.
        cpu_ticks: Of all cores since boot, by what they did, as in proc_stat(5).
    """

    unix_ns: int
    load: tuple[float, float, float]
    calibration_ms: tuple[float, ...]
    cpu_ticks: dict[str, int]

    @property
    def calibration(self) -> float:
        """The median calibration in milliseconds."""
        return statistics.median(self.calibration_ms)

    def as_data(self) -> dict[str, object]:
        """Return all of it by name."""
        return asdict(self)


def commit() -> str:
    """Return the checkout's commit, with a plus when it has changes; empty where none is known."""
    root = Path(__file__).parent.parent
    answers = []
    for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "-uno"]):
        try:
            ended = subprocess.run(
                ["git", "-C", root, *words], capture_output=True, text=True, check=True, timeout=10
            )
        except (OSError, subprocess.SubprocessError):
            return ""
        answers.append(ended.stdout.strip())
    return f"{answers[0]}+" if answers[1] else answers[0]


def machine() -> Machine:
    """Return the facts of this machine."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        vmpool=metadata.version("vmpool"),
    )


def moment() -> Moment:
    """Return how busy the machine is; takes a third of a second."""
    load = os.getloadavg()
    return Moment(
        unix_ns=time.time_ns(),
        load=load,
        calibration_ms=tuple(calibrate() for _ in range(CALIBRATION_RUNS)),
        cpu_ticks=_cpu_ticks(),
    )


def stolen_share(before: Moment, after: Moment) -> float:
    """Return the share of all cores' time that the machine's own host gave to others."""
    spent = {name: after.cpu_ticks[name] - ticks for name, ticks in before.cpu_ticks.items()}
    return spent["steal"] / max(1, sum(spent.values()))


def calibrate() -> float:
    """Return how long one fixed piece of work took on one core, in milliseconds: about 20."""
    began = time.perf_counter_ns()
    total = 0
    for step in range(CALIBRATION_STEPS):
        total += step & 7
    return (time.perf_counter_ns() - began) / 1e6


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _cpu_ticks() -> dict[str, int]:
    names = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
    with Path("/proc/stat").open() as file:
        numbers = file.readline().split()[1 : len(names) + 1]
    return dict(zip(names, map(int, numbers), strict=True))
