"""Tenure: who has a directory for itself, and how a successor asks for it.

A lock that the kernel drops with the process, and in the locked file the process that has it: by
number and start time, so that a signal never meets a stranger who has inherited the number.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import signal
from typing import TYPE_CHECKING, BinaryIO

from vmpool.engine.qemu.record import start_ticks
from vmpool.errors import ConflictError, DiskFullError, HostError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

LOCK = "lock"

HAND_OVER = signal.SIGUSR1
"""What asks a server to end and to leave its sandboxes to the next one."""

# A child that a killed server had forked but that has not called exec yet holds the lock till then.
_LOCK_SECONDS = 2.0
_LOCK_TRIES = 100

_LIMIT_BYTES = 64


@contextlib.asynccontextmanager
async def held(directory: Path) -> AsyncIterator[None]:
    """Hold a directory for this process alone, until it ends however it ends.

    Raises:
        ConflictError: `state_in_use`: another server has it.
        HostError, DiskFullError: It is not to be written in.
    """
    try:
        descriptor = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise unusable(directory, err) from err
    try:
        for _ in range(_LOCK_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_SECONDS / _LOCK_TRIES)
        else:
            raise ConflictError(
                f"another server runs on {str(directory)!r}",
                code="state_in_use",
                remedy="use that one, take over from it with `vmpool serve --drain`, stop it, or "
                "choose another directory with --state",
            )
        _sign(descriptor, directory)
        yield
    finally:
        os.close(descriptor)


async def succeed(directory: Path, *, within: float) -> bool:
    """Have the server that holds a directory hand it over; return once it has ended.

    Args:
        within: Seconds that it may take.

    Returns:
        Whether there was one.

    Raises:
        HostError: `server_stays`: it did not end in time, or is another account's.
    """
    pidfd = _holder(directory)
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, HAND_OVER)
        await _ended(pidfd, within)
    except ProcessLookupError:
        pass  # it has just ended by itself
    except PermissionError as err:
        raise _stays("it is another account's") from err
    finally:
        os.close(pidfd)
    return True


def unusable(directory: Path, err: OSError) -> DiskFullError | HostError:
    """Return, as an error to raise, that a directory of ours cannot be written in."""
    if err.errno in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFullError(f"no space in {str(directory)!r}", remedy="make room on that disk")
    return HostError(
        f"cannot write in {str(directory)!r}: {err.strerror}",
        code="state_unwritable",
        remedy="run as an account that may, or choose another one with --state",
    )


def _sign(descriptor: int, directory: Path) -> None:
    pid = os.getpid()
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{pid} {start_ticks(pid)}\n".encode(), 0)
    except OSError as err:
        raise unusable(directory, err) from err


def _holder(directory: Path) -> int | None:
    """Return a pidfd of the process that holds a directory; `None` when none does."""
    try:
        with (directory / LOCK).open("rb") as file:
            if not _is_locked(file):
                return None
            pid, ticks = map(int, file.read(_LIMIT_BYTES).split())
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return None
    with contextlib.suppress(ProcessLookupError):
        # Held first, compared then: between the two the number cannot pass to another process.
        if start_ticks(pid) == ticks:
            return pidfd
    os.close(pidfd)
    return None


def _is_locked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


async def _ended(pidfd: int, within: float) -> None:
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        loop.remove_reader(pidfd)
        ended.set_result(None)

    loop.add_reader(pidfd, note)
    try:
        async with asyncio.timeout(within):
            await ended
    except TimeoutError as err:
        raise _stays(f"it did not end within {within:g} s") from err
    finally:
        loop.remove_reader(pidfd)


def _stays(why: str) -> HostError:
    return HostError(
        f"the server that runs does not make way: {why}",
        code="server_stays",
        remedy="stop it as whoever started it",
    )
