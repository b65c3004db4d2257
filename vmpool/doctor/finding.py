"""Finding: one thing that the host should have, and how it stands; text and JSON of many."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class State(StrEnum):
    """How a thing stands."""

    OK = "ok"
    DEGRADED = "degraded"
    """It is not there, and vmpool works without it, but slower or with less protection."""
    MISSING = "missing"
    """It is not there, and vmpool does not work without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that the host should have.

    Attributes:
        purpose: What vmpool needs it for.
        detail: What was found.
        remedy: The command or the step that mends it; empty when nothing does.
    """

    name: str
    purpose: str
    state: State
    detail: str
    remedy: str = ""


def healthy(findings: Iterable[Finding]) -> bool:
    """Tell whether nothing is missing that vmpool cannot do without."""
    return all(finding.state is not State.MISSING for finding in findings)


def render_text(findings: Iterable[Finding]) -> str:
    """Return findings for a terminal: one line each, a remedy on the line below."""
    findings = tuple(findings)
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<8}  {finding.name:<{width}}  {finding.detail}")
        if finding.state is not State.OK:
            lines.append(f"{'':<8}  {'':<{width}}  needed: {finding.purpose}")
        if finding.remedy:
            lines.append(f"{'':<8}  {'':<{width}}  remedy: {finding.remedy}")
    return "\n".join(lines)


def document(findings: Iterable[Finding]) -> dict[str, object]:
    """Return findings as one JSON document."""
    findings = tuple(findings)
    return {
        "healthy": healthy(findings),
        "checks": [
            {
                "name": finding.name,
                "purpose": finding.purpose,
                "state": finding.state.value,
                "detail": finding.detail,
                "remedy": finding.remedy,
            }
            for finding in findings
        ],
    }
