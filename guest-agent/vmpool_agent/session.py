"""Session: one byte stream to the host and the channels on it.

It moves bytes between a descriptor and the codec and tells each channel's operation what arrived.
It knows no operation: what a request means is decided by the callable that it is given. A fault
in one operation ends that channel with the error `internal`, and nothing else.
"""

from __future__ import annotations

import collections
import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vmpool_agent import wire
from vmpool_agent.message import decode, encode
from vmpool_agent.reactor import report

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool_agent.reactor import Reactor

    Start = Callable[["Channel", dict[str, Any]], "Operation | None"]
    """Begins what a request asks for; `None` when it is already answered.

    Raises:
        OperationError: It cannot be done.
    """

_CHUNK = 64 * 1024
_READS_PER_TURN = 4
_CONGESTED = 128 * 1024
"""Unsent bytes from which on operations are asked to hold back; control frames still go out."""


class Service(NamedTuple):
    """What an agent offers on each of its streams.

    Attributes:
        admit: Whether a host that presents this key is obeyed.
        start: Begins an operation.
    """

    admit: Callable[[bytes], bool]
    start: Start


class OperationError(Exception):
    """An operation cannot be done; code and message go to the host as they are."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Operation(Protocol):
    """What one channel is about, once its request has been understood."""

    def on_data(self, data: wire.Data) -> None:
        """Take bytes from the host; give them back with `Channel.consumed` when handed on."""

    def on_message(self, value: dict[str, Any]) -> None:
        """Take a message from the host."""

    def on_finish(self) -> None:
        """Note that the host sends no more."""

    def on_writable(self) -> None:
        """Go on sending: the window or the stream has room again."""

    def on_closed(self) -> None:
        """End at once: the host has given up, or is gone. Nothing can be sent any more."""


class Channel:
    """One channel as its operation sees it."""

    def __init__(self, session: Session, number: int) -> None:
        self._session = session
        self._number = number
        self._operation: Operation | None = None
        self._documents: collections.deque[memoryview] = collections.deque()
        self._ending = False
        self._open = True

    @property
    def capacity(self) -> int:
        """How many bytes of data may be sent now, 0 to hold back; `on_writable` follows."""
        if not self._open or self._documents or self._session.congested:
            return 0
        return self._session.connection.capacity(self._number)

    @property
    def backlog(self) -> bool:
        """Whether messages wait for the window; an operation then makes no more of them."""
        return bool(self._documents)

    def send_data(self, stream: int, payload: bytes) -> None:
        """Send at most `capacity` bytes."""
        self._session.connection.send_data(self._number, stream, payload)
        self._session.flush()

    def send_message(self, value: dict[str, Any]) -> None:
        """Send a message after those before it, as the window allows.

        Raises:
            MisuseError: It is larger than the host takes; nothing was sent.
        """
        if self._open:
            self._documents.append(encode(value, wire.MAX_ANSWER))
            self._pump()

    def consumed(self, data: wire.Data) -> None:
        """Let the host send as much again."""
        if self._open:
            self._session.connection.consumed(data)
            self._session.flush()

    def finish(self) -> None:
        """Say that no more data follows, nor a message. *Idempotent.*"""
        if self._open:
            self._session.connection.send_finish(self._number)
            self._session.flush()

    def end(self) -> None:
        """Close the channel once all messages are sent. *Idempotent.*"""
        self._ending = True
        self._operation = None
        self._pump()

    def fail(self, error: OperationError) -> None:
        """Answer with an error and end."""
        self.send_message({"type": "error", "code": error.code, "message": str(error)})
        self.end()

    def _pump(self) -> None:
        connection = self._session.connection
        while self._open and self._documents:
            rest = connection.send_message(self._number, self._documents[0])
            if rest:
                self._documents[0] = rest
                break
            self._documents.popleft()
        if self._open and self._ending and not self._documents:
            self._open = False
            connection.send_close(self._number)
            self._session.drop(self._number)
        self._session.flush()

    def deliver(self, event: wire.Event, start: Start) -> None:
        """Hand an event to the operation; the session calls this."""
        try:
            self._deliver(event, start)
        except OperationError as err:
            self._break_off(err)
        except wire.PeerError as err:
            self._break_off(OperationError("bad_request", str(err)))
        except Exception as err:  # noqa: BLE001 the channel's top: its fault is not the others'
            report("operation failed")
            self._break_off(OperationError("internal", f"{type(err).__name__}: {err}"))

    def _break_off(self, error: OperationError) -> None:
        operation, self._operation = self._operation, None
        self.fail(error)
        if operation is not None:
            operation.on_closed()

    def abandon(self) -> None:
        """End the operation without a word to the host; the session calls this."""
        self._open = False
        self._documents.clear()
        operation, self._operation = self._operation, None
        if operation is not None:
            operation.on_closed()

    def _deliver(self, event: wire.Event, start: Start) -> None:
        operation = self._operation
        if isinstance(event, wire.Credited):
            self._pump()
            if operation is not None:
                operation.on_writable()
        elif isinstance(event, wire.Message):
            self._session.connection.consumed(event)
            value = decode(event.document)
            if operation is not None:
                operation.on_message(value)
            elif not self._ending:
                self._operation = start(self, value)
        elif isinstance(event, wire.Data):
            if operation is not None:
                operation.on_data(event)
            else:
                self._session.connection.consumed(event)
        elif isinstance(event, wire.Finished) and operation is not None:
            operation.on_finish()


class Session:
    """What goes over one descriptor.

    Args:
        fd: Non-blocking, owned by the session from here on.
        service: Whom it obeys, and how operations begin.
        on_hangup: Called when the host is gone from the stream, or was none that we obey.
    """

    def __init__(
        self, reactor: Reactor, fd: int, service: Service, on_hangup: Callable[[Session], None]
    ) -> None:
        self.connection = wire.Connection(wire.Role.AGENT, service.admit)
        self._reactor = reactor
        self._fd = fd
        self._start = service.start
        self._on_hangup = on_hangup
        self._channels: dict[int, Channel] = {}
        self._waiting = False
        self._flushing = False
        self._blocked = False
        reactor.watch(fd, self._on_ready)

    @property
    def congested(self) -> bool:
        """Whether so much is unsent that operations should hold back."""
        congested = len(self.connection.outgoing) > _CONGESTED
        self._waiting |= congested
        return congested

    def flush(self) -> None:
        """Write what can be written, at the end of this turn."""
        if not self._flushing:
            self._flushing = True
            self._reactor.soon(self._flush)

    def drop(self, number: int) -> None:
        """Forget a channel that is closed."""
        self._channels.pop(number, None)

    def reset(self) -> None:
        """Drop all channels and look for a new SYNC."""
        self.connection.reset()
        self._abandon()

    def close(self) -> None:
        """Drop all channels and close the descriptor. *Idempotent.*"""
        self._abandon()
        if self._fd >= 0:
            self._reactor.forget(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _abandon(self) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.abandon()

    def _hang_up(self) -> None:
        self.reset()
        self._on_hangup(self)

    def _on_ready(self) -> None:
        self._flush()
        self._read()

    def _read(self) -> None:
        for _ in range(_READS_PER_TURN):
            if self._fd < 0:
                return
            try:
                data = os.read(self._fd, _CHUNK)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._hang_up()
                return
            self._receive(data)
        self._reactor.soon(self._read)

    def _receive(self, data: bytes) -> None:
        try:
            events = self.connection.receive(data)
        except wire.RefusedError:
            # Without a word: what is not our host learns nothing, and cannot fill the console.
            self._hang_up()
            return
        except wire.PeerError:
            report("the host broke the protocol")
            self._abandon()
            # Behind what its predecessor left half sent may come the SYNC of the host's successor.
            self._receive(b"")
            return
        for event in events:
            self._dispatch(event)
        self.flush()

    def _dispatch(self, event: wire.Event) -> None:
        if isinstance(event, wire.Synchronised):
            self._abandon()
        elif isinstance(event, wire.Opened):
            self._channels[event.channel] = Channel(self, event.channel)
        elif isinstance(event, wire.Closed):
            channel = self._channels.pop(event.channel, None)
            if channel is not None:
                channel.abandon()
        else:
            channel = self._channels.get(event.channel)
            if channel is not None:
                channel.deliver(event, self._start)

    def _flush(self) -> None:
        self._flushing = False
        outgoing = self.connection.outgoing
        # What a broken stream cannot take is dropped when reading tells of it.
        with contextlib.suppress(OSError):
            while outgoing and self._fd >= 0:
                written = os.write(self._fd, outgoing[:_CHUNK])
                del outgoing[:written]
        if self._fd >= 0 and bool(outgoing) != self._blocked:
            self._blocked = bool(outgoing)
            watch = self._reactor.watch_room if self._blocked else self._reactor.unwatch_room
            watch(self._fd)
        if self._waiting and len(outgoing) <= _CONGESTED:
            self._waiting = False
            for number, channel in list(self._channels.items()):
                channel.deliver(wire.Credited(number), self._start)
