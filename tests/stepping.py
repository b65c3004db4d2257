"""Stepping: cancel a coroutine at every place where it can be cancelled, one after the other.

A place is the chain of awaits that a coroutine is suspended in. One that it comes by again and
again, as when it polls, counts once.
"""

from __future__ import annotations

import asyncio
import types
from enum import Enum, auto
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

_OURS = str(Path(__file__).parents[1])

Place = tuple[str, ...]


class Insistence(Enum):
    """How often the cancellation comes."""

    ONCE = auto()
    AT_EVERY_STEP_FROM_THERE = auto()


async def places(work: Coroutine[Any, Any, Any]) -> tuple[list[Place], Any]:
    """Run `work` to its end; return the places that it came by, in order, and its result."""
    found: dict[Place, None] = {}
    result = await _stepped(work, found.setdefault)
    return list(found), result


async def cancel_at(
    place: Place, work: Coroutine[Any, Any, Any], insistence: Insistence = Insistence.ONCE
) -> Any | None:
    """Run `work` and cancel it at a place; return its result when it did not come by there.

    Raises:
        Exception: What it raised instead of being cancelled.
    """
    reached = False

    def cancel(where: Place) -> None:
        nonlocal reached
        again = insistence is Insistence.AT_EVERY_STEP_FROM_THERE
        if (where == place and not reached) or (reached and again):
            reached = True
            task.cancel()

    task = asyncio.ensure_future(_stepped(work, cancel))
    await asyncio.wait({task})
    if task.cancelled():
        return None
    assert not reached or task.exception() is not None, f"not cancelled at {place}"
    return task.result()


@types.coroutine
def _stepped(
    work: Coroutine[Any, Any, Any], each: Callable[[Place], object]
) -> Generator[Any, Any, Any]:
    """Await `work`, and call `each` with the place of every suspension, before it takes place."""
    value: Any = None
    error: BaseException | None = None
    while True:
        try:
            waits_for = work.send(value) if error is None else work.throw(error)
        except StopIteration as end:
            return end.value
        each(_place(work))
        value, error = None, None
        try:
            value = yield waits_for
        except BaseException as err:  # noqa: BLE001 - passed on to the work
            error = err


def _place(work: Any) -> Place:
    chain = []
    while work is not None:
        for kind in ("cr", "gi", "ag"):
            frame = getattr(work, f"{kind}_frame", None)
            if frame is not None:
                name = frame.f_code.co_filename
                if name.startswith(_OURS) and "/.venv/" not in name:
                    chain.append(f"{name.removeprefix(_OURS)}:{frame.f_lineno}")
                break
        work = next(
            (
                getattr(work, name)
                for name in ("cr_await", "gi_yieldfrom", "ag_await")
                if hasattr(work, name)
            ),
            None,
        )
    return tuple(chain)
