"""Chores: the tasks that somebody has going on, and owns.

Begun here, told of when one fails, awaited together at the end. What they do it does not know; who
began them bounds them.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine

log = logging.getLogger(__name__)


class Chores:
    """Tasks of one owner.

    Args:
        name: Of the owner, for the tasks' names and for messages.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Start a task; one that fails is told to the loop's exception handler."""
        task = asyncio.get_running_loop().create_task(work, name=self._name)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    async def done(self, *, within: float) -> None:
        """Return when none is left, those begun meanwhile included, or after `within` seconds."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + within
        while busy := {task for task in self._tasks if not task.done()}:
            left = deadline - loop.time()
            if left <= 0:
                log.error("%s closed with %d tasks that do not end", self._name, len(busy))
                return
            await asyncio.wait(busy, timeout=left)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            task.get_loop().call_exception_handler(
                {"message": "a task failed", "exception": error, "task": task}
            )
