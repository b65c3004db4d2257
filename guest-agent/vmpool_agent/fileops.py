"""File operations: the agent's end of a channel about files, and the child that does the work."""

from __future__ import annotations

import contextlib
import functools
import os
from typing import TYPE_CHECKING, Any

from vmpool_agent import files, spawn
from vmpool_agent.files import OPERATIONS
from vmpool_agent.pipes import Pipes
from vmpool_agent.relay import Relay
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from vmpool_agent import wire
    from vmpool_agent.machine import Machine
    from vmpool_agent.session import Channel

_CONTENT = 0
"""The stream that a file's bytes come on."""

_PASSED_ON = frozenset({"entries", "watching", "changes", "flushed"})
"""What a child says before its answer."""
_TAKES_DATA = frozenset({"write", "watch"})

__all__ = ["OPERATIONS", "FileOperation", "run"]


class FileOperation:
    """One file operation, done by a child of the asking account."""

    def __init__(self, machine: Machine, channel: Channel, pid: int, pipes: Pipes) -> None:
        self._channel = channel
        self._answer: dict[str, Any] | None = None
        self.relay = Relay(machine.reactor, channel, self)
        machine.expect(pid, self.relay.reaped)
        self.relay.adopt(pid, pipes)
        self.relay.flow()

    def on_data(self, data: wire.Data) -> None:
        """See `session.Operation`."""
        self.relay.feed(data.payload, functools.partial(self._channel.consumed, data))

    def on_finish(self) -> None:
        """See `session.Operation`."""
        self.relay.finish_input()

    def on_message(self, value: dict[str, Any]) -> None:
        """See `session.Operation`."""
        raise OperationError("bad_request", f"a file operation understands no {value.get('op')!r}")

    def on_writable(self) -> None:
        """See `session.Operation`."""
        self.relay.resume()

    def on_closed(self) -> None:
        """See `session.Operation`."""
        self.relay.abandon()

    def on_report(self, value: dict[str, Any]) -> None:
        """See `relay.Owner`."""
        if value.get("type") in _PASSED_ON:
            self._channel.send_message(value)
        else:
            self._answer = value

    def on_reports_end(self) -> None:
        """See `relay.Owner`."""

    def on_end(self, status: int) -> None:
        """See `relay.Owner`."""
        if self._answer is None:
            raise_to = OperationError("internal", f"file operation died with wait status {status}")
            self._channel.fail(raise_to)
            return
        self._channel.send_message(self._answer)
        self._channel.end()


def run(machine: Machine, channel: Channel, request: dict[str, Any]) -> FileOperation:
    """Begin a file operation.

    Raises:
        OperationError: The account is not there; everything else the child finds out.
    """
    name = str(request["op"])
    account = machine.account(request)
    pipes = Pipes((_CONTENT,))
    if name in _TAKES_DATA:
        stdin = pipes.add_stdin()
    else:
        stdin = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    content, reports = pipes.child

    def body() -> int:
        with contextlib.suppress(OSError):
            machine.system.unprotect()
        machine.system.become(account)
        os.chdir("/")
        return files.perform(name, account, request)

    try:
        pid = spawn.fork((stdin, content, 2, reports), body)
    except OSError as err:
        pipes.close()
        raise OperationError("no_resources", f"fork: {err.strerror}") from err
    finally:
        os.close(stdin)
        pipes.close_child()
    return FileOperation(machine, channel, pid, pipes)
