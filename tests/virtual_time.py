"""Virtual time: an event loop whose clock jumps to the next timer instead of waiting for it.

A test of an hour of deadlines takes milliseconds and is the same every time, and one that waits for
what will never come fails at once. For code that awaits nothing but the loop itself.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
from typing import TYPE_CHECKING, Any, ParamSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

P = ParamSpec("P")

MOST_POLLS = 10_000
"""Turns of the loop without time passing, far more than any test takes."""


class DeadlockError(AssertionError):
    """Every task waits, and no timer is left that could wake one."""


class LivelockError(AssertionError):
    """Something runs over and over, and no time passes."""


class _Selector(selectors.SelectSelector):
    """Polls, and lets the time that it should have waited pass."""

    now = 0.0
    polls = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready:
            return ready
        if timeout is None:
            raise DeadlockError
        self.polls = 0 if timeout > 0 else self.polls + 1
        if self.polls > MOST_POLLS:
            raise LivelockError
        self.now += max(timeout, 0.0)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, which begins at 0."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._clock.now


def virtual(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an async test in virtual time; it fails when a task is left or fails unnoticed."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        complaints: list[dict[str, Any]] = []
        with asyncio.Runner(loop_factory=VirtualLoop) as runner:
            loop = runner.get_loop()
            loop.set_exception_handler(lambda _, context: complaints.append(context))
            runner.run(test(*args, **kwargs))
            left = asyncio.all_tasks(loop)
            assert not left, left
        assert not complaints, complaints

    del run.__wrapped__  # pytest would look through it at the async function
    return run


async def settle() -> None:
    """Let everything happen that can happen without time passing."""
    await asyncio.sleep(1e-6)


async def pass_time(seconds: float) -> None:
    """Let virtual time pass."""
    await asyncio.sleep(seconds)
