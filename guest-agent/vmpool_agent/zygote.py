"""Zygote: the warm interpreter itself, a process that imports, waits and forks.

It touches as little as it can after a restore: every page that it or a fork writes is a page that
the clone no longer shares. It reads no request; a fork does, and is the agent's to reap.
"""

from __future__ import annotations

import functools
import gc
import os
import runpy
import socket
from typing import TYPE_CHECKING

from vmpool_agent import generators, runner, sibling, spawn
from vmpool_agent.reactor import report

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool_agent.system import System


def main(control: int, warm_up: str, system: System) -> int:
    """Warm up, then serve until the agent is gone; returns the exit code."""
    # matplotlib must not look for a display, neither now nor in a fork.
    os.environ.setdefault("MPLBACKEND", "Agg")
    if os.path.exists(warm_up):  # noqa: PTH110
        try:
            runpy.run_path(warm_up)
        except BaseException:  # noqa: BLE001 a broken warm-up costs the warmth, not the interpreter
            report(f"warm-up {warm_up} failed")
    _settle()
    warm = generators.states()
    fork = sibling.forking()
    with socket.socket(fileno=control) as connection:
        while _serve_one(connection, system, warm, fork):
            pass
    return 0


def _serve_one(
    connection: socket.socket, system: System, warm: generators.States, fork: Callable[[], bool]
) -> bool:
    """Do as the agent says; false at its end.

    Args:
        fork: Makes a sibling of this process, which is the agent's child: that is to learn of its
            end by itself.
    """
    data, descriptors, _, _ = socket.recv_fds(connection, 1, 4)
    if not data:
        return False
    if data == spawn.COLLECT:
        _settle()
        connection.send(data)
        return True
    # Without it the spare, and then its end, would be waited for in vain: closing tells the agent.
    try:
        serve = runner.serve_at_once if data == spawn.FORK_AT_ONCE else runner.serve
        descriptors.append(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))
        control, *pipes, null = descriptors  # where its request will come from; its 1, 2 and 3
        if fork():
            spawn.be_child((null, *pipes, control), functools.partial(serve, system, warm))
    except OSError:
        report("fork failed")
    finally:
        for fd in descriptors:
            os.close(fd)
    return True


def _settle() -> None:
    gc.collect()
    # What is here now is never collected, so a collection in a fork does not touch its pages.
    gc.freeze()
