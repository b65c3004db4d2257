"""Portal: an event loop in a thread of its own, for those who have none.

The loop is private: it works in a notebook, whose own loop is busy, and in a thread of a program
that has another. It knows nothing of what runs in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

from vmpool.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
    from contextlib import AbstractAsyncContextManager

T = TypeVar("T")


class Portal:
    """A loop that starts with the first call; close it when done. May be used by many threads.

    One that is forgotten is closed when nothing refers to it any more, or the interpreter ends.

    Args:
        farewell: Done in the loop before it ends; refers to no portal.
    """

    def __init__(self, farewell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._farewell = farewell
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: weakref.finalize[..., Portal] | None = None
        self._closed = False

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` to its end; whatever interrupts the wait, like Ctrl-C, cancels it.

        Raises:
            InvalidRequestError: It was closed; `client_forked`.
        """
        try:
            doing = self._begin(work)
        except BaseException:
            work.close()
            raise
        try:
            return doing.result()
        except BaseException:
            doing.cancel()  # changes nothing when the work has ended
            raise

    def close(self) -> None:
        """Say farewell, cancel what runs, and end the loop and its thread. *Idempotent.*"""
        with self._lock:
            self._closed = True
        if self._end is not None:
            self._end()

    def _begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
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
                # A thread that nobody waits for: should the end fail, the interpreter's does not.
                thread = threading.Thread(
                    target=asyncio.run,
                    args=(_serve(running, self._farewell),),
                    name="vmpool client",
                    daemon=True,
                )
                thread.start()
                self._loop, closing = running.result()
                self._end = weakref.finalize(self, _end, self._loop, closing, thread)
            # Not outside of the lock: a loop that is ending takes work and never begins it.
            return asyncio.run_coroutine_threadsafe(work, self._loop)


@contextlib.contextmanager
def entered(portal: Portal, block: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Hold an asynchronous block open; what ends ours ends that one in the same way."""
    yielded = portal.call(_coroutine(block.__aenter__()))
    try:
        yield yielded
    except BaseException as err:
        # Ctrl-C in the other thread would end its loop; to a block it is a cancellation.
        thrown = err if isinstance(err, Exception) else asyncio.CancelledError()
        with contextlib.suppress(CancelledError):
            portal.call(_coroutine(block.__aexit__(type(thrown), thrown, err.__traceback__)))
        raise
    portal.call(_coroutine(block.__aexit__(None, None, None)))


def iterated(portal: Portal, items: AsyncIterator[T]) -> Iterator[T]:
    """Yield what an asynchronous iterator does, each item when it is asked for."""
    while True:
        try:
            item = portal.call(_coroutine(anext(items)))
        except StopAsyncIteration:
            return
        yield item


async def _coroutine(work: Awaitable[T]) -> T:
    return await work


async def _serve(
    running: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]],
    farewell: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    closing = asyncio.Event()
    running.set_result((asyncio.get_running_loop(), closing))
    await closing.wait()
    await farewell()


def _end(loop: asyncio.AbstractEventLoop, closing: asyncio.Event, thread: threading.Thread) -> None:
    """End a loop. In a fork of its process there is no such thread, and nothing is done."""
    if thread.is_alive():
        loop.call_soon_threadsafe(closing.set)
        if thread is not threading.current_thread():  # a collector runs in any
            thread.join()
