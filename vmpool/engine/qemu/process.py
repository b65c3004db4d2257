"""Process: one QEMU process, from spawn to reaping.

It is held by a pidfd, so its end is an event on the loop and a signal never meets a stranger who
has inherited the number. A process outlives the manager that started it; what starts it here also
reaps it, and what a later manager finds it can watch and kill all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import shutil
import signal
import threading
from typing import TYPE_CHECKING

from vmpool import precedence
from vmpool.cancellation import uninterrupted
from vmpool.engine.qemu.jail import calls, limits
from vmpool.errors import EngineError, HostError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeVar

    from vmpool.engine.qemu.isolation import Jail

    T = TypeVar("T")

UNKNOWN_EXIT = 255
"""Exit code of a process that ended and was not our child: the kernel tells only the parent."""

REAP_TIMEOUT = 15.0
"""Seconds from SIGKILL until the kernel must have torn a process down, RAM and all."""

# Sources are moved above every slot first: a slot filled could overwrite a source still to come.
_ABOVE_SLOTS = 512


class Process:
    """A running or ended process, held by its pidfd."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[int] = self._loop.create_future()
        self._loop.add_reader(pidfd, self._end)

    @classmethod
    def open(cls, pid: int) -> Process:
        """Hold the process `pid`, whoever started it.

        Raises:
            ProcessLookupError: There is none.
        """
        return cls(pid, os.pidfd_open(pid))

    @property
    def exit_code(self) -> int | None:
        """Exit code, negative for a signal; `None` while it runs."""
        return self._ended.result() if self._ended.done() else None

    @property
    def is_alive(self) -> bool:
        """Whether it is held and has not ended, as the kernel knows at this moment."""
        if not self._is_held:
            return False
        try:
            signal.pidfd_send_signal(self._pidfd, 0)
        except ProcessLookupError:
            return False
        return not select.select([self._pidfd], [], [], 0)[0]  # a zombie takes signals, too

    async def wait(self) -> int:
        """Return the exit code once the process has ended and is reaped."""
        return await asyncio.shield(self._ended)

    async def kill(self) -> None:
        """End the process; return when it is reaped. *Idempotent*, completes when cancelled.

        Raises:
            EngineError: The kernel did not end it in time; code `process_stuck`.
        """
        self.send_kill()
        if self._is_held:
            await uninterrupted(self._reaped())

    def send_kill(self) -> None:
        """Tell the kernel to end the process, without waiting for it. *Idempotent.*"""
        if self._is_held:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def release(self) -> None:
        """Let go of the process, which lives on: it is not killed any more, nor its end noticed.

        *Idempotent.*
        """
        if self._is_held:
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    @property
    def _is_held(self) -> bool:
        return self._pidfd >= 0

    async def _reaped(self) -> None:
        try:
            async with asyncio.timeout(REAP_TIMEOUT):
                await self.wait()
        except TimeoutError as err:
            raise EngineError(
                f"process {self.pid} did not end within {REAP_TIMEOUT:g} s of SIGKILL",
                code="process_stuck",
            ) from err

    def _end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        code = UNKNOWN_EXIT
        with contextlib.suppress(ChildProcessError):
            result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED)
            assert result is not None  # without WNOHANG
            exited = result.si_code == os.CLD_EXITED
            code = result.si_status if exited else -result.si_status
        os.close(self._pidfd)
        self._pidfd = -1
        self._ended.set_result(code)


async def spawn(argv: Sequence[str], *, slots: Mapping[int, int], log: int, jail: Jail) -> Process:
    """Start `argv`, held by `jail`, in a session of its own.

    Args:
        argv: Program, found on PATH, and arguments.
        slots: Number in the child → our descriptor, which stays ours to close. The child gets
            these and no other.
        log: Descriptor that the child's output goes to.

    Raises:
        HostError: The program is missing (`qemu_missing`), the kernel refused the isolation, or no
            descriptor is left to hold it by (`process_unheld`); it is gone then.
        EngineError: The program could not be started.
    """
    program = shutil.which(argv[0])  # as us: the other account's view of PATH is narrower
    if program is None:
        raise HostError(
            f"{argv[0]!r} is missing",
            code="qemu_missing",
            remedy="vmpool doctor --install",
        )
    command = [*jail.isolation.prefix, program, *argv[1:]]

    # A task of its own, which no cancellation reaches between learning the pid and holding it.
    started = asyncio.ensure_future(_started(command, slots, log, jail))
    try:
        return await asyncio.shield(started)
    except asyncio.CancelledError:
        await uninterrupted(_undo(started))
        raise


async def _started(command: list[str], slots: Mapping[int, int], log: int, jail: Jail) -> Process:
    pid = await _in_own_thread(lambda: _spawn_jailed(command, slots, log, jail))
    try:
        limits.give_way(pid)
        return Process.open(pid)
    except OSError as err:
        await asyncio.to_thread(_put_down, pid)
        raise HostError(
            f"cannot hold process {pid}: {err.strerror}",
            code="process_unheld",
            remedy="raise the limit of open files: LimitNOFILE= in systemd, or ulimit -n",
        ) from err


def _put_down(pid: int) -> None:
    """End and reap a child of ours by its number, which nobody else has until it is reaped."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


async def _undo(started: asyncio.Future[Process]) -> None:
    with contextlib.suppress(HostError, EngineError):
        await (await started).kill()


def _spawn_jailed(command: list[str], slots: Mapping[int, int], log: int, jail: Jail) -> int:
    try:
        precedence.give_up()
        calls.unshare(calls.OWN_DIRECTORY | calls.OWN_DESCRIPTORS)
        # From here on the descriptor table is this thread's own, and goes away with it. Whatever
        # we inherited ourselves goes no further; the spawn names what does.
        calls.close_on_exec()
        wanted = {0: os.open(os.devnull, os.O_RDWR), 1: log, 2: log, **slots}
        moved = {
            slot: fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, _ABOVE_SLOTS)
            for slot, ours in wanted.items()
        }
        jail.enter(handed=slots.values())
        pid = os.posix_spawnp(
            command[0],
            command,
            {"LC_ALL": "C.UTF-8"},  # our environment may hold secrets
            file_actions=[(os.POSIX_SPAWN_DUP2, ours, slot) for slot, ours in moved.items()],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM),
        )
    except OSError as err:
        raise EngineError(
            f"cannot start {command[0]!r}: {err.strerror}", argv=tuple(command)
        ) from err
    try:
        jail.impose_limits(pid)
    except BaseException:
        _put_down(pid)
        raise
    return pid


async def _in_own_thread(function: Callable[[], T]) -> T:
    """Run `function` in a new thread that ends with it; on cancellation its result is lost."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = function()
        except BaseException as err:  # noqa: BLE001 -- handed to the awaiting side
            loop.call_soon_threadsafe(future.set_exception, err)
        else:
            loop.call_soon_threadsafe(future.set_result, result)

    thread = threading.Thread(target=run, name="vmpool-spawn")
    thread.start()
    try:
        return await future
    finally:
        thread.join()
