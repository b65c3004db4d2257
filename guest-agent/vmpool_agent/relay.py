"""Relay: a child process behind a channel, its pipes carried over the channel's windows.

It decides when output may be read (the window has room), when the child has ended for the channel
(reaped, and its output at an end or out of grace), and who is killed when. It knows neither
programs nor files: what reports mean is told by its owner's callbacks.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import select
import signal
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vmpool_agent import terminal, wire
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool_agent.pipes import Pipes
    from vmpool_agent.reactor import Reactor, Timer
    from vmpool_agent.terminal import Size

_GRACE = 0.5
"""Seconds that output may stay open after we killed the group: others may hold the pipes."""
_MAX_REPORT = wire.MAX_ANSWER
_QUIET = 0.02
"""Seconds that a child's word of its start may wait for its first output: both are told at once."""


class Outlet(Protocol):
    """Where what a child says goes: a channel, or what several channels follow."""

    @property
    def capacity(self) -> int:
        """How many bytes of data may be sent now, 0 to hold back; `resume` follows."""

    @property
    def backlog(self) -> bool:
        """Whether messages wait; the child's reports then wait as well."""

    def send_data(self, stream: int, payload: bytes) -> None:
        """Send at most `capacity` bytes."""

    def send_message(self, value: dict[str, Any]) -> None:
        """Send a message.

        Raises:
            MisuseError: It is too large; nothing was sent.
        """

    def end(self) -> None:
        """Note that nothing follows. *Idempotent.*"""

    def fail(self, error: OperationError) -> None:
        """Say why it is over, and end."""


class Owner(Protocol):
    """Whose child it is."""

    def on_report(self, value: dict[str, Any]) -> None:
        """Take one report of the child."""

    def on_reports_end(self) -> None:
        """Note that the child reports no more: it runs a program, or has ended."""

    def on_end(self, status: int) -> None:
        """Note that the child is reaped and its output has been sent."""


class _Portion(NamedTuple):
    """Bytes for the child's stdin, from somebody who is called back when they are done with."""

    payload: bytes
    consumed: Callable[[], None]
    source: object


class Relay:
    """One child's pipes and life; the child is adopted when there is one."""

    def __init__(self, reactor: Reactor, outlet: Outlet, owner: Owner) -> None:
        self._reactor = reactor
        self._outlet = outlet
        self._owner = owner
        self._outputs: dict[int, int] = {}
        self._report = -1
        self._attentive = False
        self._line = bytearray()
        self._lines: collections.deque[bytearray] = collections.deque()
        self._stdin: int | None = None
        self._input: collections.deque[_Portion] = collections.deque()
        self._input_offset = 0
        self._input_ended = False
        self._pid: int | None = None
        self._status: int | None = None
        self._signals: list[int] = []
        self._flowing = False
        self._due = False
        self._ended = False
        self._grace: Timer | None = None
        self._leaving: Timer | None = None
        self._quiet: Timer | None = None

    @property
    def pid(self) -> int | None:
        """The child, `None` while it is not known yet."""
        return self._pid

    @property
    def takes_input(self) -> bool:
        """Whether what is fed can still reach the child."""
        return self._stdin is not None and not self._input_ended

    @property
    def over(self) -> bool:
        """Whether nobody waits for the child any more."""
        return self._ended

    def adopt(self, pid: int, pipes: Pipes) -> None:
        """Take a child on, and the agent's ends of its pipes; to be followed by `attend…`."""
        self._pid = pid
        self._report = pipes.report
        self._stdin = pipes.stdin
        self._outputs = pipes.outputs
        for number in self._signals:
            self.kill(number)
        self._signals.clear()

    def attend(self) -> None:
        """Listen to the child's reports and output. *Idempotent.*"""
        if self._attentive or self._report < 0:
            return
        self._attentive = True
        self._watch_outputs()
        self._reactor.watch(self._report, self._pump_report)

    def attend_to_output(self) -> None:
        """Listen to its output first, and to its reports when that comes or it keeps quiet.

        A child's word of its start is then no reason to be woken between it and its first output.
        """
        self._watch_outputs()
        self._quiet = self._reactor.after(_QUIET, self.attend)

    def let_go(self) -> None:
        """Part with a child that ended before it began; another may be adopted."""
        self._close_pipes()
        self._pid = self._status = None
        self._line.clear()
        self._lines.clear()

    def flow(self) -> None:
        """Begin to carry input and output."""
        self._flowing = True
        self.attend()
        if self._stdin is not None:
            self._reactor.watch(self._stdin, self._pump_input)
            self._reactor.watch_room(self._stdin)
        self._pump_input()
        self._come_again()

    def reaped(self, status: int) -> None:
        """Learn the child's wait status."""
        self._status = status
        self.attend()
        self._check_end()
        if self._terminal is not None and not self._ended:
            self._leaving = self._reactor.after(_GRACE, self._leave_terminal)

    def _watch_outputs(self) -> None:
        for fd in self._outputs:
            if not self._reactor.watches(fd):
                self._reactor.watch(fd, functools.partial(self._on_output, fd))

    def kill(self, number: int) -> None:
        """Send a signal to the child's process group, as soon as there is one."""
        if self._pid is None:
            self._signals.append(number)
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, number)
        if number == signal.SIGKILL and self._grace is None and not self._ended:
            self._grace = self._reactor.after(_GRACE, self._give_up_output)

    def abandon(self) -> None:
        """Kill the group and let go of everything; the child is reaped without a word."""
        self._ended = True
        self.kill(signal.SIGKILL)
        self._release()

    def resize(self, size: Size) -> None:
        """Set the size of the child's terminal.

        Raises:
            OperationError: It has none.
        """
        if self._terminal is None:
            raise OperationError("no_terminal", "it runs at no terminal")
        terminal.set_size(self._terminal, size)

    def feed(self, payload: bytes, consumed: Callable[[], None], source: object = None) -> None:
        """Take bytes for the child's stdin; calls back once it has them, or wants no more."""
        self._input.append(_Portion(payload, consumed, source))
        self._pump_input()

    def withdraw(self, source: object) -> None:
        """Forget what a source has fed and the child has not taken yet."""
        if self._input and self._input[0].source is source:
            self._input_offset = 0
        kept = [portion for portion in self._input if portion.source is not source]
        self._input = collections.deque(kept)
        self._pump_input()

    def finish_input(self) -> None:
        """Close the child's stdin behind what was fed; at a terminal the end is typed instead."""
        self._input_ended = self._terminal is None
        self._pump_input()

    def resume(self) -> None:
        """Go on: the channel has room again."""
        self._pump_outputs()
        self._pump_report()

    @property
    def _terminal(self) -> int | None:
        """Our end of the child's terminal, while it is open."""
        found = (fd for fd, stream in self._outputs.items() if stream == wire.TERMINAL)
        return next(found, None)

    def _pump_input(self) -> None:
        while self._input and (self._flowing or self._ended):
            portion = self._input[0]
            if self._stdin is not None and not self._write_input(portion.payload):
                return
            self._input.popleft()
            self._input_offset = 0
            portion.consumed()
        if self._input_ended and not self._input and self._flowing and self._stdin is not None:
            self._close(self._stdin)
            self._stdin = None

    def _write_input(self, payload: bytes) -> bool:
        """Write what is left of a payload; return whether it is done with."""
        assert self._stdin is not None
        try:
            while self._input_offset < len(payload):
                self._input_offset += os.write(self._stdin, payload[self._input_offset :])
        except BlockingIOError:
            return False
        except OSError:
            # The program closed its stdin; what still comes is discarded.
            self._close(self._stdin)
            self._stdin = None
        return True

    def _turn(self) -> None:
        self._due = False
        self._pump_outputs()
        self._pump_report()

    def _come_again(self) -> None:
        """Go on in the next turn, so that a flood here leaves the others their turn."""
        if not self._due:
            self._due = True
            self._reactor.soon(self._turn)

    def _pump_outputs(self) -> None:
        if not self._flowing:
            return
        for fd in list(self._outputs):
            self._pump_output(fd)
        self._check_end()

    def _on_output(self, fd: int) -> None:
        if not self._flowing:
            self._pump_report()  # its word of the start came before, and goes before
        if not self._flowing:
            self.attend()
        elif fd in self._outputs:
            self._pump_output(fd)
            self._check_end()

    def _pump_output(self, fd: int) -> None:
        room = self._outlet.capacity
        if not room:
            return
        try:
            data = os.read(fd, room)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            del self._outputs[fd]
            self._close(fd)
            self._pump_report()
            return
        self._outlet.send_data(self._outputs[fd], data)
        # Also after a short read: the pipe's end may have come in the same edge as its last bytes.
        self._come_again()

    def _pump_report(self) -> None:
        """Hand reports on, but none before the output that was written before it is sent."""
        while not self._ended and not self._outlet.backlog:
            if self._lines:
                if self._output_waits():
                    return
                self._take_line(self._lines.popleft())
            elif self._report < 0 or not self._read_report():
                return

    def _read_report(self) -> bool:
        """Read what the child reported; return whether there was anything."""
        try:
            data = os.read(self._report, wire.MAX_PAYLOAD)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._close(self._report)
            self._report = -1
            self._owner.on_reports_end()
            self._check_end()
            return False
        self._line += data
        *lines, rest = self._line.split(b"\n")
        self._lines.extend(lines)
        self._line = bytearray(rest if len(rest) <= _MAX_REPORT else b"")
        return True

    def _take_line(self, line: bytearray) -> None:
        """Take one report; what is none is the child's own fault and passed over."""
        try:
            value = json.loads(line.decode("ascii"))
        except (ValueError, RecursionError):
            return
        if isinstance(value, dict):
            self._owner.on_report(value)

    def _output_waits(self) -> bool:
        """Whether a pipe holds output that should go first; it is pumped, and we come again."""
        if not self._flowing:
            return False
        for fd in list(self._outputs):
            room = self._outlet.capacity
            if not room:
                return True
            with contextlib.suppress(OSError):
                data = os.read(fd, room)
                if data:
                    self._outlet.send_data(self._outputs[fd], data)
                    self._come_again()
                    return True
        return False

    def _leave_terminal(self) -> None:
        """Give up a terminal whose session is over: what the child wrote there has been read."""
        fd = self._terminal
        if fd is None or self._ended:
            return
        waiting = select.poll()
        waiting.register(fd, select.POLLIN)
        if waiting.poll(0) or not self._outlet.capacity:
            self._leaving = self._reactor.after(_GRACE, self._leave_terminal)
        else:
            self._give_up_output()

    def _give_up_output(self) -> None:
        for fd in list(self._outputs):
            del self._outputs[fd]
            self._close(fd)
        if self._report >= 0:
            self._close(self._report)
            self._report = -1
            self._owner.on_reports_end()
        self._check_end()

    def _check_end(self) -> None:
        if self._ended or self._status is None or self._outputs or self._report >= 0 or self._lines:
            return
        self._ended = True
        self._release()
        self._owner.on_end(self._status)

    def _release(self) -> None:
        for timer in (self._grace, self._leaving):
            if timer is not None:
                timer.cancel()
        while self._input:
            self._input.popleft().consumed()
        self._close_pipes()

    def _close_pipes(self) -> None:
        if self._quiet is not None:
            self._quiet.cancel()
        self._attentive = False
        for fd in self._outputs:
            self._close(fd)
        self._outputs = {}
        if self._report >= 0:
            self._close(self._report)
            self._report = -1
        if self._stdin is not None:
            self._close(self._stdin)
            self._stdin = None

    def _close(self, fd: int) -> None:
        self._reactor.forget(fd)
        os.close(fd)
