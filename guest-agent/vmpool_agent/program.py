"""Program: the operation `exec`, from its request to a process and whoever watches it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from vmpool_agent import execution, processes, spawn, terminal
from vmpool_agent.execution import Execution, Foreground
from vmpool_agent.pipes import Pipes
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from vmpool_agent.machine import Machine
    from vmpool_agent.processes import Attachment
    from vmpool_agent.session import Channel
    from vmpool_agent.terminal import Size


def run(machine: Machine, channel: Channel, request: dict[str, Any]) -> Foreground | Attachment:
    """Begin the operation.

    Raises:
        OperationError: It cannot be run; what only the child can find out is told later.
    """
    argv = request.get("argv")
    if not isinstance(argv, list) or not argv or not all(map(execution.is_argument, argv)):
        raise OperationError("bad_request", "argv is a list of strings, not empty, without zero")
    timeout = execution.read_timeout(request)
    size = None if request.get("pty") is None else terminal.read_size(request["pty"])
    if request.get("keep") is not True:
        pid, pipes = _start(machine, request, size)
        foreground = Execution(machine, channel, timeout=timeout)
        foreground.adopt(pid, pipes)
        return Foreground(foreground, channel)
    execution.read_launch(machine, request)
    origin = processes.read_origin(request, machine.system.clock())
    process = machine.processes.begin(origin, size)
    attachment = process.attach(channel, 0)
    try:
        pid, pipes = _start(machine, request, size)
    except BaseException:
        machine.processes.drop(process)
        raise
    process.execution = Execution(machine, process, timeout=timeout)
    process.execution.adopt(pid, pipes)
    return attachment


def _start(machine: Machine, request: dict[str, Any], size: Size | None) -> tuple[int, Pipes]:
    """Return the child that becomes the program, and the agent's ends of its pipes."""
    launch = execution.read_launch(machine, request)
    if size is not None:
        launch = launch._replace(env={"TERM": terminal.KIND, **launch.env})
    argv = request["argv"]
    pipes = Pipes(execution.OUTPUTS if size is None else ())
    opened: list[int] = []
    try:
        if size is not None:
            opened.append(pipes.add_terminal(size, launch.account))
            return _at_terminal(machine, launch, argv, (*opened * 3, *pipes.child)), pipes
        stdin = request.get("stdin") is True
        opened.append(
            pipes.add_stdin() if stdin else os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        )
        return spawn.start(machine.system, launch, argv, (*opened, *pipes.child[:2])), pipes
    except OperationError:
        pipes.close()
        raise
    except OSError as err:
        pipes.close()
        raise OperationError("no_resources", f"no process: {err.strerror}") from err
    finally:
        for fd in opened:
            os.close(fd)
        pipes.close_child()


def _at_terminal(
    machine: Machine, launch: spawn.Launch, argv: list[str], descriptors: tuple[int, ...]
) -> int:
    """Start a program that a terminal is to be its own first, which takes a step before it."""

    def body() -> int:
        terminal.take_control()
        spawn.execute(machine.system, launch, argv)

    return spawn.fork(descriptors, body)
