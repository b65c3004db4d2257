"""Report: what the ring's report says, and whether that is a success. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum
from xml.etree import ElementTree


class Outcome(IntEnum):
    """How a test ended; of two entries for one test the greater counts."""

    PASSED = 0
    SKIPPED = 1
    FAILED = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The outcome of every test of a ring.

    Attributes:
        skips: How many tests were skipped for each reason.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    skips: Counter[str] = field(default_factory=Counter)

    def count(self, outcome: Outcome) -> int:
        """Return how many tests ended so."""
        return sum(one is outcome for one in self.outcomes.values())

    def names(self, outcome: Outcome) -> list[str]:
        """Return the tests that ended so."""
        return sorted(name for name, one in self.outcomes.items() if one is outcome)

    @property
    def lines(self) -> list[str]:
        """The tally as a reader wants it at the end of a run."""
        counts = ", ".join(f"{self.count(one)} {one.name.lower()}" for one in Outcome)
        skips = [f"  skipped {many}: {why}" for why, many in sorted(self.skips.items())]
        return [counts, *(f"  failed: {name}" for name in self.names(Outcome.FAILED)), *skips]


def read(junit: str) -> Tally:
    """Return the tally of a report in JUnit's XML; an empty one of text that is none."""
    tally = Tally()
    try:
        root = ElementTree.fromstring(junit)
    except ElementTree.ParseError:
        return tally
    for case in root.iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        outcome = Outcome.PASSED
        if case.find("failure") is not None or case.find("error") is not None:
            outcome = Outcome.FAILED
        elif (skip := case.find("skipped")) is not None:
            outcome = Outcome.SKIPPED
            tally.skips[skip.get("message", "")] += 1
        tally.outcomes[name] = max(outcome, tally.outcomes.get(name, outcome))
    return tally


def objections(code: int, tally: Tally) -> list[str]:
    """Return why a ring that ended with pytest's exit `code` is no success; empty when it is."""
    found = []
    if failed := tally.count(Outcome.FAILED):
        found.append(f"{failed} failed")
    if not failed and not tally.count(Outcome.PASSED):
        found.append("no test ran")
    if code and not found:
        found.append(f"pytest ended with {code}")
    return found
