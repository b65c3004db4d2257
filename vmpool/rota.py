"""Rota: things in line, by whose they are; each party's turn comes round.

However many one party has in line, another waits for one of each at most before its own first is
served. Pure: it does not know what is in line, nor what for.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


class Rota(Generic[T]):
    """Lines of parties, the one whose turn it is first; within a party, first come, first served.

    A party without a line has no turn to lose: it comes last when it has one again.
    """

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()

    def __iter__(self) -> Iterator[T]:
        return (thing for line in self._lines.values() for thing in line)

    def of(self, party: str) -> tuple[T, ...]:
        """Return what a party has in line, the first first."""
        return tuple(self._lines.get(party, ()))

    def append(self, party: str, thing: T) -> None:
        """Put a thing at the end of its party's line."""
        self._lines.setdefault(party, deque()).append(thing)

    def prepend(self, party: str, thing: T) -> None:
        """Put a thing before all others: its turn had come already."""
        self._lines.setdefault(party, deque()).appendleft(thing)
        self._lines.move_to_end(party, last=False)

    def remove(self, thing: T) -> None:
        """Take a thing out of its line. *Idempotent*; costs its party no turn."""
        for party, line in self._lines.items():
            if thing in line:
                line.remove(thing)
                if not line:
                    del self._lines[party]
                return

    def serve(self, accepts: Callable[[T], bool]) -> bool:
        """Take out the first thing that `accepts` says yes to; its party comes last then.

        What it says no to is taken out too, and costs no turn.

        Returns:
            Whether there was one.
        """
        while self._lines:
            party, line = next(iter(self._lines.items()))
            while line:
                if accepts(line.popleft()):
                    self._lines.move_to_end(party)
                    if not line:
                        del self._lines[party]
                    return True
            del self._lines[party]
        return False
