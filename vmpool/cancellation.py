"""Cancellation: finishing what must be finished although the caller is told to stop.

A cleanup that is cut short leaves a process or a directory that nobody knows of. It has bounds of
its own; this module knows neither what is finished nor how long that takes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Closable(Protocol):
    """What is held until it is closed."""

    def close(self) -> None:
        """Let go of it."""


T = TypeVar("T")
C = TypeVar("C", bound=Closable)


async def uninterrupted(work: Awaitable[T]) -> T:
    """Await `work` to its end even when the caller is cancelled; the cancellation comes after."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as err:
            if task.cancelled():
                raise
            cancelled = err
        except BaseException:  # noqa: BLE001 -- the task's own error, raised below
            break
    if cancelled is not None:
        task.exception()  # retrieved: the cancellation is what the caller learns
        raise cancelled
    return task.result()


async def opened(make: Callable[[], C]) -> C:
    """Call what opens something in a thread; what it opened for nobody any more is closed."""
    making = asyncio.ensure_future(asyncio.to_thread(make))
    try:
        return await uninterrupted(making)
    except asyncio.CancelledError:
        if not making.cancelled() and making.exception() is None:
            making.result().close()
        raise
