"""Work: what building has under way: a directory that is not left behind, a thread that stops."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import shutil
import subprocess
import threading
import time
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from vmpool.errors import DiskFullError, HostError
from vmpool.model import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from vmpool.image.tree import Check

T = TypeVar("T")

_LOCK = "lock"
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A piece of work that somebody may wait for.

    Attributes:
        seconds: How long it took; `None` when it has just begun.
    """

    text: str
    seconds: float | None = None


def silent(step: Step) -> None:
    """Show nothing."""
    del step


@contextmanager
def shown(progress: Callable[[Step], None], text: str) -> Iterator[None]:
    """Report the beginning of a step, and its end if it ends well."""
    progress(Step(text=text))
    began = time.monotonic()
    yield
    progress(Step(text=text, seconds=time.monotonic() - began))


@asynccontextmanager
async def workspace(parent: Path) -> AsyncIterator[Path]:
    """Give a new directory below `parent` that is gone afterwards, however the work ends.

    A lock in it tells `sweep` that its owner lives.

    Raises:
        DiskFullError: The work ran out of disk space.
        HostError: `state_unwritable`: the directory cannot be made.
    """
    directory = parent / new_id()
    with full_disk_told(parent):
        _make(directory)
        lock = os.open(directory / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield directory
        finally:
            # Not handed to a thread: a second cancellation must not leave it behind.
            erase(directory)
            os.close(lock)


def _make(directory: Path) -> None:
    try:
        directory.mkdir(parents=True)
    except (PermissionError, NotADirectoryError) as err:
        raise HostError(
            f"cannot write to {str(directory.parent)!r}: {err.strerror}",
            code="state_unwritable",
            remedy="give a state directory that is yours",
        ) from err


@contextmanager
def full_disk_told(place: Path) -> Iterator[None]:
    """Turn the operating system's word for a full disk into ours.

    Raises:
        DiskFullError: The work ran out of disk space.
    """
    try:
        yield
    except OSError as err:
        if err.errno in _FULL:
            raise disk_full(place) from err
        raise


def disk_full(place: Path) -> DiskFullError:
    """Return the error for a full disk under `place`."""
    return DiskFullError(f"no space left for {place}", remedy="free some space and try again")


def sweep(parent: Path) -> int:
    """Remove the workspaces whose owner is dead; return how many. *Idempotent.*"""
    removed = 0
    for directory in sorted(parent.iterdir()) if parent.is_dir() else ():
        try:
            lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            erase(directory)
            removed += 1
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            erase(directory)
            removed += 1
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
    return removed


def erase(directory: Path) -> None:
    """Remove a directory with all below it, even what belongs to subordinate user ids."""
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return
    except PermissionError:
        argv = ["unshare", "--user", "--map-root-user", "--map-auto", "rm", "-rf", str(directory)]
        with suppress(FileNotFoundError):
            subprocess.run(argv, check=False, capture_output=True, timeout=60)


class _UnwantedError(Exception):
    """The thread's work is no longer wanted."""


async def in_thread(work: Callable[[Check], T]) -> T:
    """Run blocking work in a thread; on cancellation return only once the thread has stopped.

    Args:
        work: Calls what it is given between pieces of its work.
    """
    unwanted = threading.Event()

    def check() -> None:
        if unwanted.is_set():
            raise _UnwantedError

    task = asyncio.create_task(asyncio.to_thread(work, check))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        unwanted.set()
        while not task.done():
            # A second cancellation changes nothing: the thread must not outlive its directory.
            with suppress(asyncio.CancelledError):
                await asyncio.wait({task})
        if not task.cancelled():
            task.exception()
        raise
