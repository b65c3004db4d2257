"""Roster: the clones of one pool, each in exactly one state, and their tally.

Every change of state goes through `lifecycle`, so that a clone that was about to be given twice, or
lost, shows as an error where it happens. It decides nothing and starts nothing.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Generic, TypeVar

from vmpool.lifecycle import CloneEnd, CloneEvent, CloneState, advance_clone
from vmpool.policy import Census

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterator

T = TypeVar("T")


class Member(Generic[T]):
    """One clone's place in the pool, from the start of its restore to its end.

    Attributes:
        clone: `None` until it is restored.
        keeper: The task that restores the clone and then watches it until somebody takes it.
    """

    __slots__ = ("clone", "keeper", "state")

    def __init__(self) -> None:
        self.state = CloneState.RESTORING
        self.clone: T | None = None
        self.keeper: asyncio.Task[None] | None = None


class Roster(Generic[T]):
    """All members that have not ended.

    Attributes:
        ended: How many have, by reason.
    """

    def __init__(self) -> None:
        self.ended: Counter[CloneEnd] = Counter()
        self._members: set[Member[T]] = set()
        self._held: dict[int, Member[T]] = {}
        self._tally: Counter[CloneState] = Counter()

    def __iter__(self) -> Iterator[Member[T]]:
        return iter(self._members)

    def census(self, *, waiting: int) -> Census:
        """Return the tally with the number of callers who wait."""
        tally = self._tally
        return Census(
            ready=tally[CloneState.READY],
            restoring=tally[CloneState.RESTORING],
            held=tally[CloneState.OFFERED] + tally[CloneState.ACTIVATING] + tally[CloneState.HELD],
            dying=tally[CloneState.DYING],
            waiting=waiting,
        )

    def begin(self) -> Member[T]:
        """Return a new member, whose clone is being restored."""
        member = Member[T]()
        self._members.add(member)
        self._tally[member.state] += 1
        return member

    def holding(self, clone: T) -> Member[T] | None:
        """Return the member of a clone that somebody holds."""
        return self._held.get(id(clone))

    def step(self, member: Member[T], event: CloneEvent) -> None:
        """Move a member to its next state.

        Raises:
            ConflictError: `illegal_transition`; a mistake in the pool.
        """
        after = advance_clone(member.state, event)
        self._tally[member.state] -= 1
        self._tally[after] += 1
        member.state = after
        if after is CloneState.HELD:
            self._held[id(member.clone)] = member

    def end(self, member: Member[T], reason: CloneEnd) -> None:
        """Strike a member whose clone is gone."""
        self.step(member, CloneEvent.GONE)
        self.ended[reason] += 1
        self._members.remove(member)
        self._held.pop(id(member.clone), None)
