"""Processes: those that outlive the channel they were begun on, and the channels attached to them.

A kept process is an ordinary execution whose outlet is not a channel but a `Process`: what it
writes goes into a backlog, and from there to every channel that is attached. What it was begun
with and how it ended is remembered for a while.
"""

from __future__ import annotations

import collections
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

from vmpool_agent import terminal, wire
from vmpool_agent.backlog import Backlog
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from vmpool_agent.execution import Execution
    from vmpool_agent.session import Channel
    from vmpool_agent.terminal import Size

MAX_RUNNING = 256
MAX_ENDED = 64
_MAX_TAG = 256
_MAX_SHOWN = 16 * 1024
"""Characters of arguments and environment that are remembered of a process."""


class Origin(NamedTuple):
    """What a process was begun with, as far as it is remembered."""

    tag: str | None
    argv: list[str]
    env: dict[str, str]
    cwd: str | None
    user: str
    started_ns: int
    cut: bool


def read_origin(request: dict[str, Any], started_ns: int) -> Origin:
    """Return what is to be remembered of a request that was found to be in order.

    Raises:
        OperationError: Its tag is none.
    """
    tag = request.get("tag")
    if tag is not None and not (isinstance(tag, str) and len(tag) <= _MAX_TAG):
        raise OperationError("bad_request", f"tag is a string of {_MAX_TAG} at most, or null")
    argv, env = request["argv"], request.get("env", {})
    size = sum(map(len, argv)) + sum(len(name) + len(value) for name, value in env.items())
    size += len(argv) + len(env)
    cut = size > _MAX_SHOWN
    if cut:
        argv, env = _first_of(argv), {}
    return Origin(tag, argv, env, request.get("cwd"), request["user"], started_ns, cut)


def _first_of(argv: Iterable[str]) -> list[str]:
    kept: list[str] = []
    left = _MAX_SHOWN
    for argument in argv:
        left -= len(argument) + 1
        if left < 0:
            break
        kept.append(argument)
    return kept


class Process:
    """One kept process: the outlet of its execution, and those who follow it.

    Attributes:
        ended: What was said at its end, `None` while it runs.
    """

    def __init__(self, table: Processes, origin: Origin, size: Size | None) -> None:
        self.written = Backlog()
        self.ended: dict[str, Any] | None = None
        self.execution: Execution | None = None
        self._table = table
        self._origin = origin
        self._size = size
        self._pid = 0
        self._followers: list[Attachment] = []
        self._mourners: list[Callable[[], None]] = []

    @property
    def pid(self) -> int:
        """Its process id, 0 until it has started."""
        return self._pid

    @property
    def running(self) -> Execution:
        """Its execution.

        Raises:
            OperationError: It has ended.
        """
        if self.execution is None or self.ended is not None:
            raise OperationError("process_ended", f"process {self._pid} has ended")
        return self.execution

    @property
    def capacity(self) -> int:
        """See `relay.Outlet`: everything while nobody follows, else what the slowest leaves."""
        return min(wire.MAX_PAYLOAD, self.written.room(self._due))

    @property
    def backlog(self) -> bool:
        """See `relay.Outlet`."""
        return False

    def send_data(self, stream: int, payload: bytes) -> None:
        """See `relay.Outlet`."""
        self.written.append(stream, payload)
        for follower in self._followers:
            follower.pump()
        self.written.trim(self._due)

    def send_message(self, value: dict[str, Any]) -> None:
        """See `relay.Outlet`."""
        if value["type"] == "started":
            self._pid = value["pid"]
            self._table.add(self)
            for follower in self._followers:
                follower.announce(value)
        else:
            self.ended = value
            self._table.end(self)
            mourners, self._mourners = self._mourners, []
            for mourner in mourners:
                mourner()

    def end(self) -> None:
        """See `relay.Outlet`."""
        for follower in list(self._followers):
            follower.pump()

    def fail(self, error: OperationError) -> None:
        """See `relay.Outlet`: it never started."""
        self._table.drop(self)
        followers, self._followers = self._followers, []
        for follower in followers:
            follower.fail(error)

    def attach(self, channel: Channel, place: int) -> Attachment:
        """Let a channel follow from a place in the output on."""
        attachment = Attachment(self, channel, place)
        self._followers.append(attachment)
        return attachment

    def detach(self, attachment: Attachment) -> None:
        """Let go of a channel, which holds nothing back any more. *Idempotent.*"""
        if attachment in self._followers:
            self._followers.remove(attachment)
            self.written.trim(self._due)
            self.resume()

    def resume(self) -> None:
        """Go on reading: somebody has taken what was due."""
        if self.execution is not None:
            self.execution.relay.resume()

    def resize(self, size: Size) -> None:
        """Set the size of its terminal.

        Raises:
            OperationError: It has none, or has ended.
        """
        self.running.relay.resize(size)
        self._size = size

    def join(self, mourner: Callable[[], None]) -> None:
        """Call somebody once it has ended, unless they have left."""
        self._mourners.append(mourner)

    def leave(self, mourner: Callable[[], None]) -> None:
        """Call them no more. *Idempotent.*"""
        if mourner in self._mourners:
            self._mourners.remove(mourner)

    def describe(self) -> dict[str, Any]:
        """Return what the host is told of it."""
        relay = None if self.execution is None else self.execution.relay
        return {
            "type": "process",
            "pid": self._pid,
            **self._origin._asdict(),
            "pty": terminal.as_members(self._size),
            "stdin": relay is not None and relay.takes_input,
            "output_bytes": self.written.end,
            "backlog_bytes": self.written.end - self.written.start,
            "ended": self.ended,
        }

    @property
    def _due(self) -> int:
        """The place of the first byte that somebody is still to be sent."""
        return min((each.place for each in self._followers), default=self.written.end)


class Attachment:
    """A channel that follows a process.

    Attributes:
        place: Where in the output it is.
    """

    def __init__(self, process: Process, channel: Channel, place: int) -> None:
        self.place = place
        self._process = process
        self._channel = channel

    def announce(self, value: dict[str, Any]) -> None:
        """Send what comes before any output."""
        self._channel.send_message(value)

    def pump(self) -> None:
        """Send what is due, as far as there is room; at the end of it the process's."""
        written = self._process.written
        while room := self._channel.capacity:
            found = written.read(self.place, room)
            if found is None:
                break
            stream, data = found
            self.place += len(data)
            self._channel.send_data(stream, data)
        if self._process.ended is not None and self.place == written.end:
            self._process.detach(self)
            self._channel.send_message(self._process.ended)
            self._channel.end()

    def fail(self, error: OperationError) -> None:
        """Tell why there is nothing to follow."""
        self._channel.fail(error)

    def on_data(self, data: wire.Data) -> None:
        """See `session.Operation`."""
        consumed = functools.partial(self._channel.consumed, data)
        if self._process.execution is None or self._process.ended is not None:
            consumed()
        else:
            self._process.execution.relay.feed(data.payload, consumed, self)

    def on_finish(self) -> None:
        """See `session.Operation`: others may have more to say to it."""

    def on_message(self, value: dict[str, Any]) -> None:
        """See `session.Operation`."""
        if self._process.execution is None or self._process.ended is not None:
            return  # it was on its way when the process ended
        name = value.get("op")
        if name == "close_stdin":
            self._process.execution.relay.finish_input()
        elif name == "resize":
            self._process.resize(terminal.read_size(value))
        else:
            self._process.execution.obey(value)

    def on_writable(self) -> None:
        """See `session.Operation`."""
        self.pump()
        self._process.resume()

    def on_closed(self) -> None:
        """See `session.Operation`; what a process does not read must not pile up here."""
        self._process.detach(self)
        if self._process.execution is not None:
            self._process.execution.relay.withdraw(self)


class Processes:
    """All kept processes of a guest: those that run, and the last that ended."""

    def __init__(self) -> None:
        self._starting: list[Process] = []
        self._known: dict[int, Process] = {}
        self._ended: collections.deque[Process] = collections.deque()

    def __iter__(self) -> Iterator[Process]:
        """Yield them in the order of their starts."""
        return iter(list(self._known.values()))

    def begin(self, origin: Origin, size: Size | None) -> Process:
        """Return a process that is about to be started.

        Raises:
            OperationError: There are too many.
        """
        if len(self._starting) + len(self._known) - len(self._ended) >= MAX_RUNNING:
            raise OperationError("no_resources", f"{MAX_RUNNING} kept processes run already")
        process = Process(self, origin, size)
        self._starting.append(process)
        return process

    def add(self, process: Process) -> None:
        """Take a process on that has started."""
        self._starting.remove(process)
        predecessor = self._known.get(process.pid)
        if predecessor is not None:
            self.drop(predecessor)
        self._known[process.pid] = process

    def end(self, process: Process) -> None:
        """Note that one has ended; the oldest that did may be forgotten for it."""
        self._ended.append(process)
        if len(self._ended) > MAX_ENDED:
            self.drop(self._ended[0])

    def drop(self, process: Process) -> None:
        """Forget one. *Idempotent.*"""
        if process in self._starting:
            self._starting.remove(process)
        if process in self._ended:
            self._ended.remove(process)
        if self._known.get(process.pid) is process:
            del self._known[process.pid]

    def find(self, request: dict[str, Any]) -> Process:
        """Return the process that a request names.

        Raises:
            OperationError: There is none.
        """
        pid = request.get("pid")
        process = self._known.get(pid) if isinstance(pid, int) else None
        if process is None:
            raise OperationError("process_not_found", f"process with pid {pid!r:.32} not found")
        return process
