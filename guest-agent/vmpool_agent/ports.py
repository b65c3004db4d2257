"""Ports: connections of the host to what listens in this guest, each carried over a channel.

It decides where a port is looked for, when bytes may be read (the window has room), and how an end
on either side is told to the other: one that sends no more, or one that is gone. It knows nothing
of what is spoken there.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import socket
import struct
from typing import TYPE_CHECKING, Any

from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool_agent import wire
    from vmpool_agent.machine import Machine
    from vmpool_agent.reactor import Timer
    from vmpool_agent.session import Channel, Operation

    Start = Callable[[Machine, Channel, dict[str, Any]], Operation | None]

_LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
"""Where a port is looked for, in this order: some servers listen on one of them alone."""

_PATIENCE = 10.0
"""Seconds for a connection to come about; a server with a full queue leaves it hanging."""

_CONTENT = 0
"""The stream that bytes go over, in both directions."""

_READS_PER_TURN = 8

_RESET = struct.pack("ii", 1, 0)  # struct linger of socket(7): close by a reset
_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


class Connection:
    """One connection to a port of this guest.

    Args:
        machine: Whose loop it is in.
        channel: The host's end.
        port: Where something should listen.
    """

    def __init__(self, machine: Machine, channel: Channel, port: int) -> None:
        self._reactor = machine.reactor
        self._channel = channel
        self._port = port
        self._left = collections.deque(_LOOPBACKS)
        self._socket: socket.socket | None = None
        self._connected = False
        self._input: collections.deque[wire.Data] = collections.deque()
        self._offset = 0
        self._finished_in = False
        self._finished_out = False
        self._deaf = False
        self._blocked = False
        self._again = False
        self._timer: Timer = self._reactor.after(_PATIENCE, self._give_up)
        self._try_next()

    def on_data(self, data: wire.Data) -> None:
        """See `session.Operation`; what comes before the connection stands waits for it."""
        self._input.append(data)
        self._write()

    def on_finish(self) -> None:
        """See `session.Operation`."""
        self._finished_in = True
        self._write()

    def on_message(self, value: dict[str, Any]) -> None:
        """See `session.Operation`."""
        raise OperationError("bad_request", f"a connection understands no {value.get('op')!r}")

    def on_writable(self) -> None:
        """See `session.Operation`."""
        self._read()

    def on_closed(self) -> None:
        """See `session.Operation`; its peer must not take what it got for all there was."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._release()

    def _try_next(self) -> None:
        """Begin to connect at the next place.

        Raises:
            OperationError: `port_closed`; there is none left. `no_resources`.
        """
        self._drop_socket()
        while self._left:
            family, address = self._left.popleft()
            try:
                self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                code = self._socket.connect_ex((address, self._port))
            except OSError as err:
                if err.errno in _NO_ROOM:
                    raise OperationError("no_resources", f"socket: {err.strerror}") from err
                code = err.errno or errno.ECONNREFUSED
            if code in (0, errno.EINPROGRESS):
                assert self._socket is not None
                self._reactor.watch(self._socket.fileno(), self._on_ready)
                self._reactor.watch_room(self._socket.fileno())
                self._blocked = True
                return
            self._drop_socket()
        raise OperationError("port_closed", f"nothing listens on port {self._port}")

    def _on_ready(self) -> None:
        if self._socket is None:
            return
        if not self._connected and not self._settle():
            return
        self._write()
        self._read()

    def _settle(self) -> bool:
        """Learn what became of the attempt to connect; whether the connection stands."""
        assert self._socket is not None
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            try:
                self._try_next()
            except OperationError as err:
                self._fail(err)
            return False
        try:
            self._socket.getpeername()
        except OSError:
            return False  # still on its way
        self._connected = True
        self._timer.cancel()
        # What a dialogue sends piece by piece must not wait for acknowledgements.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._channel.send_message({"type": "connected"})
        return True

    def _give_up(self) -> None:
        if not self._connected:
            what = f"port {self._port} took no connection within {_PATIENCE:.0f} s"
            self._fail(OperationError("port_unresponsive", what))

    def _write(self) -> None:
        """Hand on what the host sent, and its end behind it."""
        if not self._connected or self._socket is None:
            return
        while self._input:
            data = self._input[0]
            if not self._deaf and not self._write_piece(data.payload):
                break
            self._input.popleft()
            self._offset = 0
            self._channel.consumed(data)
        if bool(self._input) != self._blocked:
            self._blocked = bool(self._input)
            watch = self._reactor.watch_room if self._blocked else self._reactor.unwatch_room
            watch(self._socket.fileno())
        if self._finished_in and not self._input:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
        self._check_end()

    def _write_piece(self, payload: bytes) -> bool:
        """Write what is left of a payload; return whether it is done with."""
        assert self._socket is not None
        try:
            while self._offset < len(payload):
                self._offset += self._socket.send(payload[self._offset :], socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        except OSError:
            self._deaf = True  # reading tells how it ended, behind what the peer said before
        return True

    def _read(self) -> None:
        """Hand on what the peer sent, and its end behind it, as far as the window allows."""
        self._again = False
        for _ in range(_READS_PER_TURN):
            if not self._connected or self._socket is None or self._finished_out:
                return
            room = self._channel.capacity
            if not room:
                return
            try:
                data = self._socket.recv(room)
            except BlockingIOError:
                return
            except OSError as err:
                self._fail(OperationError("connection_reset", f"port {self._port}: {err.strerror}"))
                return
            if not data:
                self._finished_out = True
                self._channel.finish()
                self._check_end()
                return
            self._channel.send_data(_CONTENT, data)
        if not self._again:
            self._again = True
            self._reactor.soon(self._read)  # a flood here leaves the others their turn

    def _check_end(self) -> None:
        if self._finished_out and (self._deaf or (self._finished_in and not self._input)):
            self._release()
            self._channel.end()

    def _fail(self, error: OperationError) -> None:
        self._release()
        self._channel.fail(error)

    def _release(self) -> None:
        self._timer.cancel()
        self._drop_socket()
        self._input.clear()

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._reactor.forget(self._socket.fileno())
            self._socket.close()
            self._socket = None


def _connect(machine: Machine, channel: Channel, request: dict[str, Any]) -> Connection:
    port = request.get("port")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 1 << 16:
        raise OperationError("bad_request", "port is a number from 1 to 65535")
    return Connection(machine, channel, port)


OPERATIONS: dict[str, Start] = {"connect": _connect}
