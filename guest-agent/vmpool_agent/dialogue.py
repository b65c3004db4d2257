"""Dialogue: what is said between the agent and an interpreter that goes on from one request to the
next.

Requests go one way; output and reports come the other and are handed on in the order in which they
were written: a report after all output that was there before it. While nobody listens output is
thrown away, so that what a process left running writes never blocks it. It knows no language and
does not decide what a report means.
"""

from __future__ import annotations

import array
import collections
import contextlib
import fcntl
import functools
import json
import os
import termios
from typing import TYPE_CHECKING, Any, Protocol

from vmpool_agent import spawn, wire

if TYPE_CHECKING:
    from vmpool_agent.pipes import Pipes
    from vmpool_agent.reactor import Reactor
    from vmpool_agent.session import Channel

_MAX_REPORT = wire.MAX_ANSWER
_READS_PER_TURN = 64
"""More than the longest report takes."""


class Owner(Protocol):
    """Whose interpreter it is."""

    def on_report(self, value: dict[str, Any]) -> None:
        """Take one report; whoever listened has all output that was written before it."""

    def on_end(self, status: int) -> None:
        """Note that the interpreter is reaped, and all that it wrote handed on."""


class Dialogue:
    """The agent's ends of one interpreter's pipes, which it owns from here on.

    Args:
        pipes: Their `stdin` takes requests.
    """

    def __init__(self, reactor: Reactor, pipes: Pipes, owner: Owner) -> None:
        assert pipes.stdin is not None
        self._reactor = reactor
        self._owner = owner
        self._listener: Channel | None = None
        self._requests = pipes.stdin
        self._asked = bytearray()
        self._outputs = pipes.outputs
        self._report = pipes.report
        self._line = bytearray()
        self._lines: collections.deque[bytearray] = collections.deque()
        self._due: dict[int, int] | None = None
        self._status: int | None = None
        self._again = False
        self._held_back = False
        self._drained = False
        self._over = False
        for fd in self._outputs:
            reactor.watch(fd, functools.partial(self._on_output, fd))
        reactor.watch(self._report, self._pump)
        reactor.watch(self._requests, self._write)
        self._blocked = False

    def ask(self, request: bytes) -> None:
        """Send bytes of a request after those before it."""
        self._asked += request
        self._write()

    def listen(self, channel: Channel | None) -> None:
        """Send output to a channel from now on, or throw it away."""
        self._listener = channel
        if self._held_back:
            self._held_back = False
            self._come_again()

    def resume(self) -> None:
        """Go on: the listener has room again."""
        self._pump()

    def reaped(self, status: int) -> None:
        """Learn the interpreter's wait status; what it has written by now is still handed on."""
        self._status = status
        self._pump()

    def close(self) -> None:
        """Let go of everything. *Idempotent.*"""
        if self._over:
            return
        self._over = True
        self._listener = None
        for fd in (*self._outputs, self._report, self._requests):
            if fd >= 0:
                self._reactor.forget(fd)
                os.close(fd)
        self._outputs = {}
        self._report = self._requests = -1

    def _write(self) -> None:
        if self._requests < 0:
            return
        # A pipe that broke tells of a death, which is told in another way.
        with contextlib.suppress(OSError):
            while self._asked:
                del self._asked[: os.write(self._requests, self._asked)]
        if bool(self._asked) != self._blocked:
            self._blocked = bool(self._asked)
            watch = self._reactor.watch_room if self._blocked else self._reactor.unwatch_room
            watch(self._requests)

    def _on_output(self, _fd: int) -> None:
        self._pump()

    def _pump(self) -> None:
        """Hand on what there is, piece by piece: a flood here leaves the others their turn."""
        self._again = False
        if self._over:
            return
        if self._must_wait:
            self._held_back = True
            return
        if not self._lines and self._due is None:
            self._read_reports()
        if self._lines or self._status is not None:
            self._settle()
        elif sum(self._move(fd, wire.WINDOW) for fd in list(self._outputs)):
            self._come_again()

    def _settle(self) -> None:
        """Hand on the output before a report, and then that; or before the end, and then that."""
        if self._due is None:
            self._due = {fd: _waiting_bytes(fd) for fd in self._outputs}
        # What was written between two reports that are here is here, too; as a rule nothing is.
        is_quiet = not any(self._due.values())
        if not self._hand_on_due():
            return
        self._due = None
        if self._lines:
            self._take_line(self._lines.popleft())
            while is_quiet and self._lines and not self._over and not self._must_wait:
                self._take_line(self._lines.popleft())
            # All that was written until now is handed on; of what comes, the kernel tells.
            if self._lines or not self._drained or self._status is not None:
                self._come_again()
            return
        assert self._status is not None
        self.close()
        self._owner.on_end(self._status)

    @property
    def _must_wait(self) -> bool:
        return self._listener is not None and self._listener.backlog

    def _hand_on_due(self) -> bool:
        """Hand on what was written before a report; whether that is all done."""
        assert self._due is not None
        for fd in list(self._outputs):
            while self._due.get(fd, 0) > 0:
                moved = self._move(fd, self._due[fd])
                if not moved:
                    break
                self._due[fd] -= moved
        return all(self._due[fd] <= 0 for fd in self._outputs)

    def _move(self, fd: int, most: int) -> int:
        """Hand on at most so many bytes of one output; return how many they were."""
        room = wire.MAX_PAYLOAD if self._listener is None else self._listener.capacity
        if not room:
            self._held_back = True
            return 0
        try:
            data = os.read(fd, min(room, most))
        except BlockingIOError:
            return 0
        except OSError:
            data = b""
        if not data:
            self._reactor.forget(fd)
            os.close(fd)
            del self._outputs[fd]
            return 0
        if self._listener is not None:
            self._listener.send_data(self._outputs[fd], data)
        return len(data)

    def _read_reports(self) -> None:
        """Read until there is a whole report, or no more for now."""
        for _ in range(_READS_PER_TURN):
            if self._lines or self._report < 0:
                return
            try:
                data = os.read(self._report, wire.MAX_PAYLOAD)
            except BlockingIOError:
                self._drained = True
                return
            except OSError:
                data = b""
            self._drained = len(data) < wire.MAX_PAYLOAD
            if not data:
                self._close_report()
                return
            self._line += data
            *lines, rest = self._line.split(b"\n")
            self._lines.extend(lines)
            self._line = bytearray(rest if len(rest) <= _MAX_REPORT else b"")
        self._come_again()

    def _close_report(self) -> None:
        self._reactor.forget(self._report)
        os.close(self._report)
        self._report = -1

    def _take_line(self, line: bytearray) -> None:
        """Take one report; what is none is the guest's own fault and passed over."""
        try:
            value = json.loads(line.decode("ascii"))
        except (ValueError, RecursionError):
            return
        if isinstance(value, dict):
            self._owner.on_report(value)
            if value.get("wait") is True:
                self.ask(spawn.TAKEN)

    def _come_again(self) -> None:
        if not self._again and not self._over:
            self._again = True
            self._reactor.soon(self._pump)


def _waiting_bytes(fd: int) -> int:
    """Return how much a pipe holds."""
    count = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, count)
    return count[0]
