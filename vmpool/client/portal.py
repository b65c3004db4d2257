"""Portal: an event loop in a thread of its own, for those who have none.

The loop is private: it works in a notebook, whose own loop is busy, and in a thread of a program
that has another. It knows nothing of what runs in it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

from vmpool.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


class Portal:
    """A loop that starts with the first call; close it when done. May be used by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end; whatever interrupts the wait, like Ctrl-C, cancels it.

        Raises:
            InvalidRequestError: `client_forked`; or `conflict` when it was closed.
        """
        try:
            loop = self._started()
        except BaseException:
            work.close()
            raise
        doing = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return doing.result()
        except BaseException:
            doing.cancel()  # changes nothing when the work has ended
            raise

    @property
    def running(self) -> bool:
        """Whether the loop has started in this process, and was not closed."""
        return self._loop is not None and self._process == os.getpid()

    def close(self) -> None:
        """Cancel what runs and end the loop and its thread. *Idempotent.*"""
        with self._lock:
            self._closed = True
            loop, closing, thread = self._loop, self._closing, self._thread
            self._loop = self._closing = self._thread = None
        if loop is None or closing is None or thread is None or self._process != os.getpid():
            return
        loop.call_soon_threadsafe(closing.set)
        thread.join()

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._process != os.getpid():
            raise InvalidRequestError(
                "a client does not survive a fork: its loop runs in the other process",
                code="client_forked",
                remedy="make one in each process",
            )
        with self._lock:
            if self._closed:
                raise InvalidRequestError("the client is closed", remedy="make another one")
            if self._loop is None:
                running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
                # A thread that nobody waits for: a client that is forgotten must not hold up the
                # interpreter's end.
                self._thread = threading.Thread(
                    target=asyncio.run, args=(_serve(running),), name="vmpool client", daemon=True
                )
                self._thread.start()
                self._loop, self._closing = running.result()
            return self._loop


async def _serve(running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
    closing = asyncio.Event()
    running.set_result((asyncio.get_running_loop(), closing))
    await closing.wait()
