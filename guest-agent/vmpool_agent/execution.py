"""Execution: one run of a program or of source, as the agent's end of its channel.

It decides what the host is told and when time is up; `relay` carries the bytes and `spawn` or the
warm interpreter makes the process.
"""

from __future__ import annotations

import functools
import os
import signal
from typing import TYPE_CHECKING, Any

from vmpool_agent import spawn, terminal, wire
from vmpool_agent.relay import Relay
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool_agent.machine import Machine
    from vmpool_agent.pipes import Pipes
    from vmpool_agent.reactor import Timer
    from vmpool_agent.relay import Outlet
    from vmpool_agent.session import Channel

OUTPUTS = (wire.STDOUT, wire.STDERR)
_SHOWN = ("result", "raised")


class Execution:
    """A process and what is told of it: to the host's channel, where that is its outlet.

    Args:
        begin_anew: Has it done by another process after one died before it had begun. `None` for
            a program, which cannot say that it has begun: exec then closes the pipe of reports.
    """

    def __init__(
        self,
        machine: Machine,
        outlet: Outlet,
        *,
        timeout: float | None,
        begin_anew: Callable[[Execution], None] | None = None,
    ) -> None:
        self._machine = machine
        self._outlet = outlet
        self._begin_anew = begin_anew
        self._started = False
        self._failed = False
        self._killed = False
        self._timed_out = False
        self._timer: Timer | None = None
        if timeout is not None:
            self._timer = machine.reactor.after(timeout, self._on_timeout)
        self.relay = Relay(machine.reactor, outlet, self)

    @property
    def over(self) -> bool:
        """Whether nobody waits for it any more."""
        return self.relay.over

    def adopt(self, pid: int, pipes: Pipes, *, ended: Callable[[], None] | None = None) -> None:
        """Take on the process that does it, and the agent's ends of its pipes.

        Args:
            ended: Called when it is reaped.
        """
        self._machine.expect(pid, functools.partial(self._on_reaped, pid, ended))
        self.relay.adopt(pid, pipes)
        if self._begin_anew is None or pipes.stdin is not None:
            self.relay.attend()
            self.relay.resume()  # one that is a program already has begun
        else:
            self.relay.attend_to_output()

    def obey(self, value: dict[str, Any]) -> None:
        """Do what a message of the host's says.

        Raises:
            OperationError: It says nothing that can be done here.
        """
        name = value.get("op")
        if name == "kill":
            self.kill(read_signal(value))
        elif name == "resize":
            self.relay.resize(terminal.read_size(value))
        else:
            raise OperationError("bad_request", f"an execution understands no {name!r:.64}")

    def kill(self, number: int) -> None:
        """Send a signal to the process group."""
        self._killed |= number == signal.SIGKILL
        self.relay.kill(number)

    def abandon(self) -> None:
        """Kill it; nobody is told any more."""
        self._stop_timer()
        self.relay.abandon()

    def on_report(self, value: dict[str, Any]) -> None:
        """See `relay.Owner`."""
        kind = value.get("type")
        if kind == "error" and not self._started:
            self._failed = True
            self._outlet.fail(OperationError(str(value.get("code")), str(value.get("message"))))
            self.abandon()  # nobody closes what never flowed: a channel that failed is over
        elif kind == "started" and self._begin_anew is not None:
            self._start()
        elif kind in _SHOWN and self._started:
            self._show(value)

    def on_reports_end(self) -> None:
        """See `relay.Owner`."""
        if self._started or self._failed:
            return
        if self._begin_anew is None or self._killed or self._timed_out:
            self._start()  # what we killed before it began has begun and was killed
            return
        self.relay.let_go()
        self._machine.reactor.soon(functools.partial(self._begin_anew, self))

    def on_end(self, status: int) -> None:
        """See `relay.Owner`."""
        self._stop_timer()
        if self._failed:
            return
        self._start()
        exited = os.WIFEXITED(status)
        self._outlet.send_message(
            {
                "type": "exited",
                "exit_code": os.WEXITSTATUS(status) if exited else None,
                "signal": None if exited else os.WTERMSIG(status),
                "timed_out": self._timed_out,
                "out_of_memory": self._ran_out_of_memory(status),
            }
        )
        self._outlet.end()

    def lose(self, why: str) -> None:
        """End without a status: there is no process, or who knew its status is gone."""
        self._stop_timer()
        self._failed = True
        self._outlet.fail(OperationError("interpreter_lost", why))
        self.relay.abandon()

    def _on_reaped(self, pid: int, ended: Callable[[], None] | None, status: int) -> None:
        if self.relay.pid == pid:  # not one that was let go
            self.relay.reaped(status)
        if ended is not None:
            ended()

    def _show(self, value: dict[str, Any]) -> None:
        try:
            self._outlet.send_message(value)
        except wire.MisuseError as err:
            left_out = {"text/plain": f"[left out: {err}]"}
            self._outlet.send_message({"type": "result", "mime": left_out})

    def _start(self) -> None:
        if self._started or self._failed:
            return
        self._started = True
        self._outlet.send_message({"type": "started", "pid": self.relay.pid})
        self.relay.flow()

    def _ran_out_of_memory(self, status: int) -> bool:
        # A shell reports its child's death by SIGKILL as 137.
        killed = (
            os.WTERMSIG(status) == signal.SIGKILL
            if os.WIFSIGNALED(status)
            else os.WEXITSTATUS(status) == 128 + signal.SIGKILL
        )
        ours = self._killed or self._timed_out
        return killed and not ours and self._machine.notice_oom_kill()

    def _on_timeout(self) -> None:
        self._timed_out = True
        self.relay.kill(signal.SIGKILL)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Foreground:
    """The channel of an execution that ends with it."""

    def __init__(self, execution: Execution, channel: Channel) -> None:
        self._execution = execution
        self._channel = channel

    def on_data(self, data: wire.Data) -> None:
        """See `session.Operation`."""
        consumed = functools.partial(self._channel.consumed, data)
        self._execution.relay.feed(data.payload, consumed)

    def on_finish(self) -> None:
        """See `session.Operation`."""
        self._execution.relay.finish_input()

    def on_message(self, value: dict[str, Any]) -> None:
        """See `session.Operation`."""
        self._execution.obey(value)

    def on_writable(self) -> None:
        """See `session.Operation`."""
        self._execution.relay.resume()

    def on_closed(self) -> None:
        """See `session.Operation`."""
        self._execution.abandon()


def read_launch(machine: Machine, request: dict[str, Any]) -> spawn.Launch:
    """Return how a request wants its process run.

    Raises:
        OperationError: It is malformed, or names an account that is not there.
    """
    env = read_env(request, "env")
    cwd = request.get("cwd")
    if cwd is not None and not is_argument(cwd):
        raise OperationError("bad_request", "cwd is a string without zero, or null")
    return spawn.Launch(machine.account(request), {**machine.randomness.environment, **env}, cwd)


def read_env(request: dict[str, Any], member: str) -> dict[str, str]:
    """Return the variables that a member of a request holds, none where it is left out.

    Raises:
        OperationError: It is malformed.
    """
    env = request.get(member, {})
    if not isinstance(env, dict) or not all(
        is_argument(name) and is_argument(value) and name and "=" not in name
        for name, value in env.items()
    ):
        raise OperationError("bad_request", f"{member} maps names to strings, without zero")
    return env


def read_timeout(request: dict[str, Any]) -> float | None:
    """Return a request's timeout in seconds, `None` for none.

    Raises:
        OperationError: It is no number of seconds.
    """
    timeout = request.get("timeout")
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise OperationError("bad_request", "timeout is a number of seconds, or null")
    return float(min(timeout, 1e9))


def read_signal(request: dict[str, Any]) -> int:
    """Return the signal that a request names.

    Raises:
        OperationError: There is none of that number.
    """
    number = request.get("signal")
    if not isinstance(number, int) or number not in signal.valid_signals():
        raise OperationError("bad_request", f"there is no signal {number!r:.32}")
    return number


def is_argument(value: object) -> bool:
    """Whether a value is text that a program can be given."""
    if not isinstance(value, str) or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True
