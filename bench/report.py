"""Report: what was found, as a table for people and as data for programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench import facts, samples
from bench.facts import Machine, Moment
from bench.measurement import Effort
from bench.suite import Outcome

FORMAT = 2
"""Version of the data; raised when a name in it changes its meaning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One run of the benchmark.

    Attributes:
        before, after: The machine around the measurements.
        commit: Of the checkout that was measured.
    """

    effort: Effort
    machine: Machine
    before: Moment
    after: Moment
    outcome: Outcome
    commit: str = ""

    def as_data(self) -> dict[str, object]:
        """Return everything, raw samples included."""
        host = self.outcome.host
        return {
            "format": FORMAT,
            "effort": self.effort,
            "commit": self.commit,
            "complete": self.outcome.complete,
            "machine": self.machine.as_data(),
            "host": None
            if host is None
            else {
                "qemu": host.qemu_version,
                "accelerator": host.accelerator,
                "accelerator_reason": host.accelerator_reason,
                "transport": host.transport,
            },
            "before": self.before.as_data(),
            "after": self.after.as_data(),
            "stolen_share": facts.stolen_share(self.before, self.after),
            "subjects": self.outcome.subjects,
            "findings": [found.as_data() for found in self.outcome.findings],
        }

    def render(self) -> str:
        """Return the table, what it was measured on, and what there is to say about it."""
        lines = [*self._facts(), "", samples.header()]
        for found in self.outcome.findings:
            lines.append(f"{found.measurement} of {found.image} ({found.seconds:.0f} s)")
            lines += samples.rows(found.all_series)
            lines += [f"  {remark}" for remark in found.remarks]
            lines += [f"  a sample failed: {failure}" for failure in found.failures]
            if found.broken_off:
                lines.append(f"  BROKEN OFF: {found.broken_off}")
        lines += ["", *self._noise()]
        return "\n".join(lines)

    def _facts(self) -> list[str]:
        machine, host = self.machine, self.outcome.host
        lines = [
            f"machine   {machine.cpu}, {machine.cores} cores, {machine.memory_bytes / 1e9:.0f} GB,"
            f" {machine.kernel}, Python {machine.python}, vmpool {machine.vmpool}",
        ]
        if host is not None:
            lines.append(
                f"engine    QEMU {host.qemu_version}, {host.accelerator}, {host.transport}"
            )
        return lines + [_subject(subject) for subject in self.outcome.subjects]

    def _noise(self) -> list[str]:
        before, after = self.before, self.after
        lines = [
            f"load      {_load(before)} before, {_load(after)} after;"
            f" stolen {100 * facts.stolen_share(before, after):.1f} %",
            f"calibration {before.calibration:.1f} ms before, {after.calibration:.1f} ms after;"
            f" fastest {min(before.calibration_ms + after.calibration_ms):.1f},"
            f" slowest {max(before.calibration_ms + after.calibration_ms):.1f}",
        ]
        within = [took for found in self.outcome.findings for took in found.calibration_ms]
        fastest = min([*before.calibration_ms, *after.calibration_ms, *within])
        slowest = max([before.calibration, after.calibration, *within])
        if slowest > facts.NOISY * fastest or before.load[0] > self.machine.cores / 2:
            lines.append(
                "The machine was NOT QUIET; these numbers are worse than it can do:"
                f" the calibration took up to {slowest / fastest:.1f} times its fastest,"
                f" the load before was {_load(before)}."
            )
        return lines


def _subject(subject: dict[str, Any]) -> str:
    cached = ", ".join(
        f"{name} {file['resident_bytes'] / 1e6:.0f} of {file['of_bytes'] / 1e6:.0f} MB"
        for name, file in subject["page_cache"].items()
    )
    return (
        f"image     {subject['image']} {subject['digest'][:12]}, {subject['machine_type']},"
        f" {subject['vcpus']} vCPU, {subject['memory_bytes'] >> 20} MiB; in page cache: {cached}"
    )


def _load(moment: Moment) -> str:
    return f"{moment.load[0]:.2f}"
