"""Progress: what is being done now and for how long, for whoever waits at a terminal.

On a terminal the step in hand is redrawn with its elapsed time; elsewhere each step is a plain line
when it begins, another when it ends after more than a second, and a sign of life every half minute.
"""

from __future__ import annotations

import shutil
import threading
import time
from typing import TYPE_CHECKING, Self, TextIO

if TYPE_CHECKING:
    from types import TracebackType

WORTH_TELLING = 1.0
"""Seconds from which a step's duration is printed."""

REDRAW = 0.2
SIGN_OF_LIFE = 30.0


class Progress:
    """The steps of one piece of work, each ended by the beginning of the next.

    Callable with a step's text, from any thread. Leaving the block ends the last step.

    Args:
        stream: Where it is shown; redrawn lines when it is a terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._redraws = stream.isatty()
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._step: str | None = None
        self._detail = ""
        self._since = 0.0
        self._next_sign = SIGN_OF_LIFE
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)

    def __enter__(self) -> Self:
        self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        self._ticker.join()
        with self._lock:
            self._end_step(finished=error is None)

    def __call__(self, step: str) -> None:
        """End the step in hand and begin another; after the block, print a line of it."""
        with self._lock:
            if self._left.is_set():
                self._line(step)
                return
            self._end_step(finished=True)
            self._step, self._detail = step, ""
            self._since, self._next_sign = time.monotonic(), SIGN_OF_LIFE
            if self._redraws:
                self._draw(0.0)
            else:
                self._line(f"{step} ...")

    def note(self, detail: str) -> None:
        """Say what the step in hand is at; shown beside it, never a line of its own."""
        with self._lock:
            self._detail = " ".join(detail.split())

    def _end_step(self, *, finished: bool) -> None:
        if self._step is None:
            return
        step, took = self._step, time.monotonic() - self._since
        self._step = None
        duration = f" ({elapsed(took)})" if took >= WORTH_TELLING else ""
        word = "" if finished else " failed"
        if self._redraws:
            self._stream.write("\r\x1b[K")  # ECMA-48: to the line's start, erase to its end
            self._line(f"{'ok' if finished else '--'}  {step}{word}{duration}")
        elif duration or not finished:
            self._line(f"{step}{word or ' done'}{duration}")

    def _tick(self) -> None:
        while not self._left.wait(REDRAW):
            with self._lock:
                if self._step is None:
                    continue
                took = time.monotonic() - self._since
                if self._redraws:
                    self._draw(took)
                elif took >= self._next_sign:
                    self._next_sign += SIGN_OF_LIFE
                    self._line(self._state(took))

    def _draw(self, took: float) -> None:
        # A line that wraps could not be redrawn in place.
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r\x1b[K{f'..  {self._state(took)}'[:width]}")
        self._stream.flush()

    def _state(self, took: float) -> str:
        since = f" {elapsed(took)}" if took >= WORTH_TELLING else ""
        return f"{self._step} ...{since}" + (f"  {self._detail}" if self._detail else "")

    def _line(self, text: str) -> None:
        self._stream.write(f"{text}\n")
        self._stream.flush()


def elapsed(seconds: float) -> str:
    """Return a duration as a person says it: `12 s`, `3 min 5 s`."""
    whole = int(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"
