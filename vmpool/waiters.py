"""Waiters: callers in line for a thing, each of whom gets it or an error, never both or neither.

A thing is *offered*, and the caller takes it in the very step in which it wakes. A caller that left
meanwhile cannot be offered anything; one that is cancelled between offer and waking hands back what
it never saw. Nothing here knows what is waited for.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from vmpool.rota import Rota

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

T = TypeVar("T")


class Waiter(Generic[T]):
    """One caller's place in a line. Await it for the outcome; needs a running loop."""

    __slots__ = ("_outcome",)

    def __init__(self) -> None:
        self._outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def __await__(self) -> Generator[object, None, T]:
        return self._outcome.__await__()

    @property
    def waits(self) -> bool:
        """Whether nothing is decided and the caller is still there."""
        return not self._outcome.done()

    @property
    def unseen(self) -> T | None:
        """What was offered, for a caller that was cancelled before it woke."""
        outcome = self._outcome
        if not outcome.done() or outcome.cancelled() or outcome.exception() is not None:
            return None
        return outcome.result()

    def offer(self, thing: T) -> bool:
        """Decide for `thing`; false when the caller has left or its outcome is decided already."""
        if self._outcome.done():
            return False
        self._outcome.set_result(thing)
        return True

    def fail(self, error: Exception) -> None:
        """Decide for `error`, unless the outcome is decided already."""
        if not self._outcome.done():
            self._outcome.set_exception(error)


class Line(Generic[T]):
    """Waiters; parties are served in turn, and within a party first come, first served."""

    def __init__(self) -> None:
        self._waiters: Rota[Waiter[T]] = Rota()

    def __len__(self) -> int:
        return sum(waiter.waits for waiter in self._waiters)

    def count(self, party: str) -> int:
        """Return how many of a party wait."""
        return sum(waiter.waits for waiter in self._waiters.of(party))

    def join(self, party: str) -> Waiter[T]:
        """Return a new place at the end of a party's line."""
        waiter = Waiter[T]()
        self._waiters.append(party, waiter)
        return waiter

    def rejoin(self, party: str) -> Waiter[T]:
        """Return a new place at the head of all, for a caller whose turn it was already."""
        waiter = Waiter[T]()
        self._waiters.prepend(party, waiter)
        return waiter

    def leave(self, waiter: Waiter[T]) -> None:
        """Give up a place. *Idempotent.*"""
        self._waiters.remove(waiter)

    def offer(self, thing: T) -> bool:
        """Offer `thing` to the first who waits; false when nobody does."""
        return self._waiters.serve(lambda waiter: waiter.offer(thing))

    def fail(self, error: Callable[[], Exception]) -> None:
        """Decide for an error of their own for all who wait."""
        for waiter in self._waiters:
            waiter.fail(error())
        self._waiters = Rota()
