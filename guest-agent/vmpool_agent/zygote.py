"""Zygote: the warm interpreter itself, a process that imports, waits and forks.

It touches as little as it can after a restore: every page that it or a fork writes is a page that
the clone no longer shares. It reads no request; a fork does.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import socket
from typing import TYPE_CHECKING, Any

from vmpool_agent import generators, runner, spawn
from vmpool_agent.reactor import report

if TYPE_CHECKING:
    from types import FrameType

    from vmpool_agent.system import System

_DESCRIPTORS = 5  # request, stdin, stdout, stderr, report


def main(control: int, warm_up: str, system: System) -> int:
    """Warm up, then serve until the agent is gone; returns the exit code."""
    # matplotlib must not look for a display, neither now nor in a fork.
    os.environ.setdefault("MPLBACKEND", "Agg")
    if os.path.exists(warm_up):  # noqa: PTH110
        try:
            runpy.run_path(warm_up)
        except BaseException:  # noqa: BLE001 a broken warm-up costs the warmth, not the interpreter
            report(f"warm-up {warm_up} failed")
    with socket.socket(fileno=control) as connection:
        return Zygote(connection, system).serve()


class Zygote:
    """Waits for requests and dead children."""

    def __init__(self, connection: socket.socket, system: System) -> None:
        self._connection = connection
        self._system = system
        self._runs: dict[int, int] = {}

    def serve(self) -> int:
        """Serve until the agent closes the connection; returns the exit code."""
        wakeup, wakeup_write = os.pipe()
        os.set_blocking(wakeup, False)
        os.set_blocking(wakeup_write, False)

        def nothing(_number: int, _frame: FrameType | None) -> None:
            """Let the signal reach the wake-up descriptor."""

        signal.signal(signal.SIGCHLD, nothing)
        signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(wakeup, select.POLLIN)
        gc.collect()
        # What is here now is never collected, so a collection in a fork does not touch its pages.
        gc.freeze()
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if wakeup in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wakeup, 512)
                self._reap()
            if self._connection.fileno() in ready and not self._take():
                return 0

    def _reap(self) -> None:
        while self._runs:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            number = self._runs.pop(pid, None)
            if number is not None:
                self._say({"run": number, "status": status})

    def _take(self) -> bool:
        """Take one request; return whether there may be more."""
        data, descriptors, _, _ = socket.recv_fds(self._connection, 65536, _DESCRIPTORS)
        if not data:
            return False
        value = json.loads(data)
        try:
            if "run" in value:
                self._fork(value["run"], descriptors)
            else:
                self._answer(value)
        finally:
            for fd in descriptors:
                os.close(fd)
        return True

    def _fork(self, number: int, descriptors: list[int]) -> None:
        request, *others = descriptors
        try:
            pid = spawn.fork((*others, request), lambda: runner.run(self._system))
        except OSError as err:
            self._say({"run": number, "error": f"fork: {err.strerror}"})
            return
        self._runs[pid] = number
        self._say({"run": number, "pid": pid})

    def _answer(self, value: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"answer": value["ask"]}
        if "seed" in value:
            answer["generators"] = generators.reseed(bytes.fromhex(value["seed"]))
        else:
            gc.collect()
            gc.freeze()
        self._say(answer)

    def _say(self, value: dict[str, Any]) -> None:
        self._connection.send(json.dumps(value).encode("ascii"))
