"""Place: room in a pool for a clone that the pool does not restore.

Taken before the clone is made, so that two who make clones at one time cannot both have the last
room; then it has a clone, or is given back. It decides nothing: the pool does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from vmpool.lifecycle import CloneEnd, CloneState

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool.roster import Member, Roster

T = TypeVar("T")


class Place(Generic[T]):
    """One place, from `Pool.reserve` until it is filled or given up; it counts as held all along.

    It outlives its pool's closing, as a held clone does.

    Args:
        freed: Told that a place was given up.
    """

    def __init__(self, member: Member[T], *, roster: Roster[T], freed: Callable[[], None]) -> None:
        self._member = member
        self._roster = roster
        self._freed = freed

    def fill(self, clone: T) -> None:
        """Count `clone`, which runs, as held in this place; its holder kills and releases it.

        Raises:
            ConflictError: `illegal_transition`; the place was filled or given up before.
        """
        self._roster.fill(self._member, clone)

    def give_up(self) -> None:
        """Give a place back that was not filled. *Idempotent*, and nothing once it was filled."""
        if self._member.state is CloneState.RESERVED:
            self._roster.end(self._member, CloneEnd.GIVEN_UP)
            self._freed()
