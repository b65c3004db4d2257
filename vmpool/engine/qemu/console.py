"""Console: the last words of a booted guest, in a file that cannot grow.

A guest may write to its console for ever. What it writes comes through a pipe and is kept up to a
limit; the oldest goes first, for a boot that fails says why at its end. A guest that writes faster
than it is read waits for its serial port, as it would for a real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

LIMIT_BYTES = 64 << 10
"""The file's size at most; of what is older than that, half of it is dropped at once."""

_PAUSE = 0.05
"""Seconds between two reads: what a flood costs the loop is twenty of them a second."""


class Console:
    """Keeps what comes through a pipe in a file; whoever makes it calls `close`.

    Args:
        path: The file, which must not exist.

    Attributes:
        writer: The end of the pipe to hand over, the caller's to close.

    Raises:
        OSError: There is no room for the file, or no descriptor.
    """

    def __init__(self, path: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._kept = bytearray()
        self._pause: asyncio.TimerHandle | None = None
        with contextlib.ExitStack() as undo:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            undo.callback(os.close, self._file)
            self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
            self._held = undo.pop_all()
        self._held.callback(os.close, self._reader)
        os.set_blocking(self._reader, False)
        self._listen()

    def close(self) -> None:
        """Keep what has come so far, and listen no more. *Idempotent.*"""
        self._take()
        self._end()

    def _listen(self) -> None:
        self._loop.add_reader(self._reader, self._hear)

    def _hear(self) -> None:
        self._loop.remove_reader(self._reader)
        if self._take():
            self._pause = self._loop.call_later(_PAUSE, self._listen)
        else:
            self._end()

    def _end(self) -> None:
        if self._pause is not None:
            self._pause.cancel()
        if self._reader >= 0:
            self._loop.remove_reader(self._reader)
            self._held.close()
            self._reader = -1

    def _take(self) -> bool:
        """Keep what is in the pipe, all of it; return whether more may come."""
        if self._reader < 0:
            return False
        try:
            heard = os.read(self._reader, LIMIT_BYTES)  # pipe(7): its capacity is no larger
        except BlockingIOError:
            return True
        if heard:
            self._keep(heard)
        return bool(heard)

    def _keep(self, heard: bytes) -> None:
        at = len(self._kept)
        self._kept += heard
        if len(self._kept) > LIMIT_BYTES:
            del self._kept[: -LIMIT_BYTES // 2]
            at = 0
        with contextlib.suppress(OSError):  # a full disk: what the guest says is not worth more
            os.pwrite(self._file, self._kept[at:], at)
            os.ftruncate(self._file, len(self._kept))
