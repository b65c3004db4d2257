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


_HELD = (CloneState.OFFERED, CloneState.ACTIVATING, CloneState.HELD, CloneState.RESERVED)


class Member(Generic[T]):
    """One clone's place in the pool, from the start of its restore, or its reserving, to its end.

    Attributes:
        clone: `None` until there is one.
        keeper: The task that restores the clone and then watches it until somebody takes it;
            `None` for one that the pool does not restore.
    """

    __slots__ = ("clone", "keeper", "state")

    def __init__(self, state: CloneState) -> None:
        self.state = state
        self.clone: T | None = None
        self.keeper: asyncio.Task[None] | None = None


class Roster(Generic[T]):
    """All members that have not ended.

    Attributes:
        ended: How many have, by reason.
        filled: How many clones were brought in by others than the pool.
    """

    def __init__(self) -> None:
        self.ended: Counter[CloneEnd] = Counter()
        self.filled = 0
        self._members: dict[Member[T], None] = {}  # in order of their coming
        self._held: dict[int, Member[T]] = {}
        self._tally: Counter[CloneState] = Counter()

    def __iter__(self) -> Iterator[Member[T]]:
        return iter(list(self._members))

    def census(self, *, waiting: int) -> Census:
        """Return the tally with the number of callers who wait."""
        tally = self._tally
        return Census(
            ready=tally[CloneState.READY],
            restoring=tally[CloneState.RESTORING],
            held=sum(tally[state] for state in _HELD),
            dying=tally[CloneState.DYING],
            waiting=waiting,
        )

    def begin(self) -> Member[T]:
        """Return a new member, whose clone is being restored."""
        return self._enter(CloneState.RESTORING)

    def reserve(self) -> Member[T]:
        """Return a new member, whose clone somebody else brings."""
        return self._enter(CloneState.RESERVED)

    def fill(self, member: Member[T], clone: T) -> None:
        """Have a reserved member hold the clone that came for it.

        Raises:
            ConflictError: `illegal_transition`; it is not reserved.
            ValueError: Another member has the clone.
        """
        self._require_unknown(clone)
        after = advance_clone(member.state, CloneEvent.FILL)
        member.clone = clone
        self._enroll(member, after)
        self.filled += 1

    def exchange(self, member: Member[T], clone: T) -> None:
        """Have a member that is held hold another clone; the former counts as released.

        Raises:
            ValueError: Another member has the clone.
        """
        self._require_unknown(clone)
        del self._held[id(member.clone)]
        member.clone = clone
        self._held[id(clone)] = member
        self.ended[CloneEnd.RELEASED] += 1
        self.filled += 1

    def youngest(self, state: CloneState) -> Member[T]:
        """Return the member in `state` that came last; there must be one."""
        return next(member for member in reversed(self._members) if member.state is state)

    def holding(self, clone: T) -> Member[T] | None:
        """Return the member of a clone that somebody holds."""
        return self._held.get(id(clone))

    def step(self, member: Member[T], event: CloneEvent) -> None:
        """Move a member to its next state.

        Raises:
            ConflictError: `illegal_transition`; a mistake in the pool.
        """
        self._enroll(member, advance_clone(member.state, event))

    def end(self, member: Member[T], reason: CloneEnd) -> None:
        """Strike a member whose clone is gone."""
        self.step(member, CloneEvent.GONE)
        self.ended[reason] += 1
        del self._members[member]
        self._held.pop(id(member.clone), None)

    def _enter(self, state: CloneState) -> Member[T]:
        member = Member[T](state)
        self._members[member] = None
        self._tally[state] += 1
        return member

    def _enroll(self, member: Member[T], after: CloneState) -> None:
        self._tally[member.state] -= 1
        self._tally[after] += 1
        member.state = after
        if after is CloneState.HELD:
            self._held[id(member.clone)] = member

    def _require_unknown(self, clone: T) -> None:
        if self.holding(clone) is not None:
            raise ValueError(f"{clone!r} has a place already")
