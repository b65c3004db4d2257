"""Cancellation: finishing what must be finished although the caller is told to stop.

A cleanup that is cut short leaves a process or a directory that nobody knows of. It has bounds of
its own; this module knows neither what is finished nor how long that takes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")


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
