"""Cell: one execution in a context, as the agent's end of its channel.

It decides what the host is told and when time is up. One that the host gives up is interrupted, and
its context killed when that does not help: an execution that nobody follows holds up all others.
"""

from __future__ import annotations

import functools
import os
import signal
from typing import TYPE_CHECKING, Any

from vmpool_agent import wire
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from vmpool_agent.context import Context
    from vmpool_agent.machine import Machine
    from vmpool_agent.reactor import Timer
    from vmpool_agent.session import Channel

TIMEOUT_GRACE = 2.0
"""Seconds that code has after the interrupt that tells it that its time is up, and again after a
second one: the first is missed by who was just about to wait, and a traceback takes its time."""
ABANDON_GRACE = 5.0
"""The same for code that nobody waits for any more."""
REPEAT_DELAY = 0.5
"""Seconds until bash is interrupted once more: a program that it had forked and that had not yet
begun missed the first one, and bash waits for it."""
_SHOWN = ("type", "mime", "is_main", "display_id", "name", "value", "traceback")


class Cell:
    """One execution.

    Args:
        channel: Whose operation it is.
        env: Variables for this execution alone.
        outer: The sandbox's environment.
        timeout: Seconds from when it is begun.
    """

    def __init__(
        self,
        machine: Machine,
        channel: Channel,
        context: Context,
        *,
        source: str,
        env: dict[str, str],
        outer: dict[str, str],
        timeout: float | None,
    ) -> None:
        self.channel = channel
        self.source = source
        self.env = env
        self.outer = outer
        self._machine = machine
        self._context = context
        self._timeout = timeout
        self._timer: Timer | None = None
        self._begun = False
        self._interrupted = False
        self._timed_out = False
        self._over = False

    def on_data(self, data: wire.Data) -> None:
        """See `session.Operation`; it has no stdin."""
        self.channel.consumed(data)

    def on_finish(self) -> None:
        """See `session.Operation`."""

    def on_message(self, value: dict[str, Any]) -> None:
        """See `session.Operation`."""
        if value.get("op") != "kill" or value.get("signal") not in signal.valid_signals():
            raise OperationError("bad_request", "an execution in a context understands only kill")
        if not self._context.is_current(self):
            self._context.drop(self)
            self.fail(OperationError("context_lost", "it was killed before it began"))
        elif value["signal"] == signal.SIGINT:
            self.interrupt()
        else:
            self._context.kill(value["signal"])

    def on_writable(self) -> None:
        """See `session.Operation`."""
        if self._context.is_current(self):
            self._context.resume()

    def on_closed(self) -> None:
        """See `session.Operation`."""
        if self._over:
            return
        self._over = True
        self._stop_timer()
        if self._context.is_current(self):
            self._context.listen(None)
            self._give_up(ABANDON_GRACE)
        else:
            self._context.drop(self)

    def wait(self) -> None:
        """Tell that others are before it."""
        self.channel.send_message({"type": "queued"})

    def start(self, pid: int | None, execution_count: int) -> None:
        """Note that the interpreter is told to run it."""
        if self._timeout is not None:
            self._timer = self._machine.reactor.after(self._timeout, self._on_timeout)
        started = {"type": "started", "pid": pid, "execution_count": execution_count}
        self.channel.send_message(started)

    def begin(self) -> None:
        """Note that the interpreter runs it: an interrupt now ends it, and nothing else."""
        self._begun = True
        if self._interrupted:
            self._send_interrupt()

    def interrupt(self) -> None:
        """Have it end by SIGINT, once it has begun."""
        self._interrupted = True
        if self._begun:
            self._send_interrupt()

    def _send_interrupt(self) -> None:
        self._context.kill(signal.SIGINT)
        if self._context.language == "bash":
            self._machine.reactor.after(REPEAT_DELAY, self._interrupt_again)

    def _interrupt_again(self) -> None:
        if self._begun and self._context.is_current(self):
            self._context.kill(signal.SIGINT)

    def show(self, value: dict[str, Any]) -> None:
        """Tell what the code shows."""
        if self._over:
            return
        try:
            self.channel.send_message({key: value[key] for key in _SHOWN if key in value})
        except wire.MisuseError as err:
            left_out = {"text/plain": f"[left out: {err}]"}
            self.channel.send_message({"type": "result", "mime": left_out})

    def end(self, exit_code: int) -> None:
        """Tell that it ended, and its context goes on."""
        self._exit(exit_code & 0xFF, None, out_of_memory=False, lost=False)

    def die(self, status: int, *, out_of_memory: bool) -> None:
        """Tell that its interpreter ended, and of what."""
        exited = os.WIFEXITED(status)
        code = os.WEXITSTATUS(status) if exited else None
        number = None if exited else os.WTERMSIG(status)
        self._exit(code, number, out_of_memory=out_of_memory, lost=True)

    def fail(self, error: OperationError) -> None:
        """Tell that it was not run."""
        if not self._over:
            self._over = True
            self.channel.fail(error)

    def _exit(
        self, code: int | None, number: int | None, *, out_of_memory: bool, lost: bool
    ) -> None:
        self._stop_timer()
        if self._over:
            return
        self._over = True
        self.channel.send_message(
            {
                "type": "exited",
                "exit_code": code,
                "signal": number,
                "timed_out": self._timed_out,
                "out_of_memory": out_of_memory,
                "context_lost": lost,
            }
        )
        self.channel.end()

    def _on_timeout(self) -> None:
        self._timed_out = True
        self._give_up(TIMEOUT_GRACE)

    def _give_up(self, grace: float) -> None:
        self.interrupt()
        self._timer = self._machine.reactor.after(grace, functools.partial(self._insist, grace))

    def _insist(self, grace: float) -> None:
        self._interrupt_again()
        self._timer = self._machine.reactor.after(grace, self._kill)

    def _kill(self) -> None:
        if self._context.is_current(self):
            self._context.kill(signal.SIGKILL)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
