"""Verdict: a comparison in lines for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.comparison import CONFIDENCE, Verdict
from vmpool.cli.table import printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.comparison import Comparison, Difference

_TITLES = {
    Verdict.SLOWER: "slower",
    Verdict.LARGER: "larger",
    Verdict.FASTER: "faster",
    Verdict.SMALLER: "smaller",
    Verdict.SAME: "no difference beyond the noise",
    Verdict.TOO_FEW: "too few samples to tell (8 of each are the least)",
}
_CHANGES = (Verdict.SLOWER, Verdict.LARGER, Verdict.FASTER, Verdict.SMALLER)


def as_lines(found: Comparison, *, everything: bool) -> Iterator[str]:
    """Yield what there is to say.

    Args:
        everything: Whether series that did not change are shown one by one, not counted.
    """
    for words in found.unlike:
        yield printable(f"not the same in both: {words}")
    if found.alone:
        yield f"in one of the runs alone: {found.alone} series"
    for verdict, title in _TITLES.items():
        those = [one for one in found.differences if one.verdict is verdict]
        if not those:
            continue
        if verdict in _CHANGES or everything:
            yield f"{title}:"
            yield from map(_line, those)
        else:
            yield f"{title}: {len(those)} series"
    if not found.differences:
        yield "the runs have no series in common"
    elif not any(one.verdict in _CHANGES for one in found.differences):
        yield "nothing changed beyond the noise"


def _line(one: Difference) -> str:
    factor = f"{one.factor:.2f} x"
    if one.verdict is not Verdict.TOO_FEW:
        factor += f" ({one.low:.2f} to {one.high:.2f} at {100 * CONFIDENCE:.0f} %)"
    values = f"{one.before:.3g} -> {one.after:.3g} {one.unit}"
    name = printable(f"{one.measurement} of {one.image}: {one.name}")
    return f"  {name:<60} {values:>24}  {factor}, the machine {100 * one.margin:.0f} %"
