"""Process operations: what a host asks about kept processes, each on a channel of its own."""

from __future__ import annotations

import functools
import signal
from typing import TYPE_CHECKING, Any

from vmpool_agent import execution, terminal
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool_agent import wire
    from vmpool_agent.machine import Machine
    from vmpool_agent.processes import Attachment, Process
    from vmpool_agent.reactor import Timer
    from vmpool_agent.session import Channel, Operation

    Start = Callable[[Machine, Channel, dict[str, Any]], Operation | None]

_LAST_WORD = 1.0
"""Seconds after a process's end in which who gave it input may say that this was all."""


def _attach(machine: Machine, channel: Channel, request: dict[str, Any]) -> Attachment:
    process = machine.processes.find(request)
    wanted = request.get("backlog_bytes", 0)
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 0:
        raise OperationError("bad_request", "backlog_bytes is a number")
    written = process.written
    place = max(written.start, written.end - wanted)
    attachment = process.attach(channel, place)
    attachment.announce({"type": "attached", "pid": process.pid, "skipped_bytes": place})
    attachment.pump()
    return attachment


def _signal(machine: Machine, channel: Channel, request: dict[str, Any]) -> None:
    process = machine.processes.find(request)
    number = execution.read_signal(request)
    running = process.running
    running.kill(number)
    if number == signal.SIGKILL:
        process.join(functools.partial(_done, channel))
    else:
        _done(channel)


def _resize(machine: Machine, channel: Channel, request: dict[str, Any]) -> None:
    machine.processes.find(request).resize(terminal.read_size(request))
    _done(channel)


def _done(channel: Channel) -> None:
    channel.send_message({"type": "done"})
    channel.end()


class _Listing:
    """Tells of one process after the other, as the host takes them."""

    def __init__(self, machine: Machine, channel: Channel, _request: dict[str, Any]) -> None:
        self._channel = channel
        self._left = list(machine.processes)
        self.on_writable()

    def on_writable(self) -> None:
        """See `session.Operation`."""
        while self._left and not self._channel.backlog:
            self._channel.send_message(self._left.pop(0).describe())
        if not self._left:
            _done(self._channel)

    def on_data(self, data: wire.Data) -> None:
        """See `session.Operation`."""
        self._channel.consumed(data)

    def on_message(self, value: dict[str, Any]) -> None:
        """See `session.Operation`."""
        raise OperationError("bad_request", f"a list understands no {value.get('op')!r}")

    def on_finish(self) -> None:
        """See `session.Operation`."""

    def on_closed(self) -> None:
        """See `session.Operation`."""
        self._left.clear()


class _Input:
    """Hands bytes to a process, and answers when it has them."""

    def __init__(self, machine: Machine, channel: Channel, request: dict[str, Any]) -> None:
        self._process: Process = machine.processes.find(request)
        self._channel = channel
        self._close = request.get("close") is True
        self._waiting = 0
        self._finished = False
        self._after = machine.reactor.after
        self._refusal: Timer | None = None
        if not self._process.running.relay.takes_input:
            raise OperationError("stdin_closed", f"process {self._process.pid} takes no input")
        self._process.join(self._on_process_ended)

    def on_data(self, data: wire.Data) -> None:
        """See `session.Operation`."""
        running = self._process.execution
        assert running is not None
        if self._refusal is not None:
            self._refuse()
            return
        self._waiting += 1
        running.relay.feed(data.payload, functools.partial(self._on_taken, data), self)

    def on_finish(self) -> None:
        """See `session.Operation`."""
        running = self._process.execution
        self._leave()
        if self._close and running is not None:
            running.relay.finish_input()
        self._finished = True
        self._answer()

    def on_message(self, value: dict[str, Any]) -> None:
        """See `session.Operation`."""
        raise OperationError("bad_request", f"input understands no {value.get('op')!r}")

    def on_writable(self) -> None:
        """See `session.Operation`."""

    def on_closed(self) -> None:
        """See `session.Operation`; what a process does not read must not pile up here."""
        self._leave()
        if self._process.execution is not None:
            self._process.execution.relay.withdraw(self)

    def _on_process_ended(self) -> None:
        self._refusal = self._after(_LAST_WORD, self._refuse)

    def _refuse(self) -> None:
        self._leave()
        error = OperationError("process_ended", f"process {self._process.pid} has ended")
        self._channel.fail(error)

    def _leave(self) -> None:
        self._process.leave(self._on_process_ended)
        if self._refusal is not None:
            self._refusal.cancel()
            self._refusal = None

    def _on_taken(self, data: wire.Data) -> None:
        self._waiting -= 1
        self._channel.consumed(data)
        self._answer()

    def _answer(self) -> None:
        if self._finished and not self._waiting:
            _done(self._channel)


OPERATIONS: dict[str, Start] = {
    "processes": _Listing,
    "attach": _attach,
    "signal": _signal,
    "input": _Input,
    "resize": _resize,
}
