"""Reactor: the agent's one loop over descriptors, timers and dead children.

Descriptors are watched edge-triggered: a virtio-serial port with no host on its other end is
readable for ever to a level-triggered wait, and the agent must cost nothing while it idles. A
callback therefore reads or writes until the kernel says no, or asks to be called again with
`soon`. An exception in a callback is reported and does not end the loop.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import select
import signal
import sys
import time
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

_READING = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_BOTH = _READING | select.EPOLLOUT


class Timer:
    """A callback due at a time; `cancel()` keeps it from being called."""

    __slots__ = ("_callback", "due")

    def __init__(self, due: float, callback: Callable[[], None]) -> None:
        self.due = due
        self._callback: Callable[[], None] | None = callback

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due

    def cancel(self) -> None:
        """Keep the callback from being called. *Idempotent.*"""
        self._callback = None

    def fire(self) -> None:
        """Call the callback unless it was cancelled."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


def report(what: str) -> None:
    """Write the current exception to stderr, which is the console when the agent is PID 1."""
    with contextlib.suppress(OSError):
        sys.stderr.write(f"vmpool-agent: {what}\n{traceback.format_exc()}")
        sys.stderr.flush()


class Reactor:
    """Waits for the kernel and calls back.

    Args:
        on_child: Called with process id and wait status of each child that was reaped.
    """

    def __init__(self, on_child: Callable[[int, int], None]) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._soon: list[Callable[[], None]] = []
        self._timers: list[Timer] = []
        self._on_child = on_child
        self._running = False
        self._wakeup, self._wakeup_write = os.pipe()
        os.set_blocking(self._wakeup, False)
        os.set_blocking(self._wakeup_write, False)

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back whenever `fd` becomes readable or broken, and at once when it is."""
        self._callbacks[fd] = callback
        self._epoll.register(fd, _READING)

    def watches(self, fd: int) -> bool:
        """Whether `fd` is watched."""
        return fd in self._callbacks

    def watch_room(self, fd: int) -> None:
        """Call back for `fd` also when it becomes writable, until `unwatch_room`.

        Not for good: each write that the peer takes would wake us to no purpose.
        """
        self._epoll.modify(fd, _BOTH)

    def unwatch_room(self, fd: int) -> None:
        """Call back for `fd` only when it becomes readable or broken."""
        self._epoll.modify(fd, _READING)

    def forget(self, fd: int) -> None:
        """Watch `fd` no longer; to be called before it is closed. *Idempotent.*"""
        if self._callbacks.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    def soon(self, callback: Callable[[], None]) -> None:
        """Call back once, after the events at hand."""
        self._soon.append(callback)

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call back once, `seconds` from now."""
        timer = Timer(time.monotonic() + seconds, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def run(self) -> None:
        """Serve until `stop()`. Takes over SIGCHLD and SIGTERM."""

        def nothing(_number: int, _frame: FrameType | None) -> None:
            """Let the signal reach the wake-up descriptor."""

        def stop(_number: int, _frame: FrameType | None) -> None:
            self.stop()

        signal.signal(signal.SIGCHLD, nothing)
        signal.signal(signal.SIGTERM, stop)
        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        self.watch(self._wakeup, self._on_signal)
        self._running = True
        while self._running:
            self._turn()

    def stop(self) -> None:
        """Return from `run()` after this turn."""
        self._running = False

    def _turn(self) -> None:
        soon, self._soon = self._soon, []
        for callback in soon:
            self._call(callback)
        now = time.monotonic()
        while self._timers and self._timers[0].due <= now:
            self._call(heapq.heappop(self._timers).fire)
        for fd, _mask in self._wait():
            # An earlier callback of this turn may have ended this one.
            ready = self._callbacks.get(fd)
            if ready is not None:
                self._call(ready)

    def _wait(self) -> list[tuple[int, int]]:
        timeout = -1.0
        if self._soon or not self._running:
            timeout = 0.0
        elif self._timers:
            timeout = max(0.0, self._timers[0].due - time.monotonic())
        try:
            return self._epoll.poll(timeout)
        except OSError as err:  # pragma: no cover: Python retries EINTR itself
            if err.errno != errno.EINTR:
                raise
            return []

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:  # noqa: BLE001 the loop's top: one callback's fault is not the others'
            report("unexpected error")

    def _on_signal(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._wakeup, 512):
                pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            self._on_child(pid, status)
