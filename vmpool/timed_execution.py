"""Timed execution: one whose guest is given up when it goes on beyond its time.

The guest keeps the time of what it runs; this is for one that does not. It knows no sandbox.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmpool.errors import GuestError
from vmpool.model import Output, Result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.agent import Execution
    from vmpool.model import ExecutionEvent

GRACE = 15.0
"""Seconds beyond its time that the end of an execution may take to be told: the guest kills what is
over its time, and is not believed when it does not."""

REST_BYTES = 4 << 20
"""What may still come of an execution that is over its time by `GRACE`, for a reader who was slow:
more than pipes, the channel's window and a last result hold once the process group is dead. What is
over it is no rest: the guest goes on."""

EVENT_BYTES = 256
"""What one event counts at least: thousands of empty ones are not free."""


class TimedExecution:
    """An execution whose guest is given up when it goes on beyond its time.

    It may neither keep its reader waiting nor go on talking. Who reads slowly holds the guest back
    and may learn of an end long after it came: what was left in buffers is still told.

    Args:
        timeout: Seconds that the guest was given; `None` for no end.
    """

    def __init__(self, execution: Execution, timeout: float | None) -> None:
        self._execution = execution
        self._events = aiter(execution)
        self._patience = None if timeout is None else timeout + GRACE
        self._end = asyncio.get_running_loop().time() + (self._patience or 0.0)
        self._rest_bytes = REST_BYTES
        self.write_stdin = execution.write_stdin
        self.close_stdin = execution.close_stdin
        self.kill = execution.kill

    @property
    def pid(self) -> int:
        """The process in the guest."""
        return self._execution.pid

    def __aiter__(self) -> AsyncIterator[ExecutionEvent]:
        return self

    async def __anext__(self) -> ExecutionEvent:
        """Return the next event.

        Raises:
            GuestError: As `Execution`; `guest_unresponsive` when the end does not come.
        """
        if self._patience is None:
            return await anext(self._events)
        loop = asyncio.get_running_loop()
        began = loop.time()
        limit = asyncio.timeout(self._patience)
        try:
            async with limit:
                event = await anext(self._events)
        except TimeoutError as err:
            if not limit.expired():
                raise
            raise _over_its_time() from err
        finally:
            self._patience -= loop.time() - began
        if loop.time() > self._end:
            self._rest_bytes -= _size(event)
            if self._rest_bytes < 0:
                raise _over_its_time()
        return event


def _over_its_time() -> GuestError:
    return GuestError(
        "the guest did not end the execution when its time was up", code="guest_unresponsive"
    )


def _size(event: ExecutionEvent) -> int:
    """Return what an event counts."""
    match event:
        case Output(data=data):
            size = len(data)
        case Result(mime=mime):
            size = sum(map(len, mime.values()))
        case _:
            size = 0
    return max(size, EVENT_BYTES)
