"""File operations: the agent's end of a channel about files, and the child that does the work."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from vmpool_agent import files, spawn
from vmpool_agent.files import OPERATIONS
from vmpool_agent.relay import Relay
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from vmpool_agent import wire
    from vmpool_agent.machine import Machine
    from vmpool_agent.session import Channel

__all__ = ["OPERATIONS", "FileOperation", "run"]


class FileOperation:
    """One file operation, done by a child of the asking account.

    Args:
        stdin: Where the host's data goes, `None` when there is none.
        stdout: Where the file's bytes come from.
        report: Where the child reports.
    """

    def __init__(
        self, machine: Machine, channel: Channel, *, stdin: int | None, stdout: int, report: int
    ) -> None:
        self._channel = channel
        self._answer: dict[str, Any] | None = None
        self.relay = Relay(
            machine.reactor, channel, self, outputs={stdout: 0}, report=report, stdin=stdin
        )
        self.relay.flow()

    def on_data(self, data: wire.Data) -> None:
        """See `session.Operation`."""
        self.relay.feed(data)

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
        if value.get("type") == "entries":
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
    stdin = None
    if name == "write":
        child_stdin, stdin = os.pipe()
    else:
        child_stdin = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    stdout, child_stdout = os.pipe()
    report, child_report = os.pipe()

    def body() -> int:
        with contextlib.suppress(OSError):
            machine.system.unprotect()
        machine.system.become(account)
        os.chdir("/")
        return files.perform(name, account, request)

    operation = FileOperation(machine, channel, stdin=stdin, stdout=stdout, report=report)
    try:
        pid = spawn.fork((child_stdin, child_stdout, 2, child_report), body)
    except OSError as err:
        operation.on_closed()
        raise OperationError("no_resources", f"fork: {err.strerror}") from err
    finally:
        for fd in (child_stdin, child_stdout, child_report):
            os.close(fd)
    machine.expect(pid, operation.relay.reaped)
    operation.relay.adopt(pid)
    return operation
