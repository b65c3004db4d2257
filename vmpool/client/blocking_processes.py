"""Blocking processes: those of a sandbox for code without asyncio.

Each is the asynchronous one behind it, called through a portal; what a call does, takes and raises
is said there.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from vmpool.client.portal import entered, iterated

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from vmpool.client.events import Event, Exited
    from vmpool.client.portal import Portal
    from vmpool.client.processes import (
        AsyncAttachment,
        AsyncProcess,
        AsyncProcesses,
        ProcessInfo,
        TerminalSize,
    )


class Processes:
    """The processes of one sandbox, as `AsyncProcesses`."""

    def __init__(self, portal: Portal, behind: AsyncProcesses) -> None:
        self._portal = portal
        self._behind = behind

    def start(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        pty: TerminalSize | None = None,
        tag: str | None = None,
    ) -> Process:
        """As `AsyncProcesses.start`."""
        starting = self._behind.start(
            *argv, env=env, cwd=cwd, user=user, timeout=timeout, pty=pty, tag=tag
        )
        return Process(self._portal, self._portal.call(starting))

    def find(self, pid: int) -> Process:
        """As `AsyncProcesses.find`."""
        return Process(self._portal, self._behind.find(pid))

    def list(self) -> tuple[ProcessInfo, ...]:
        """As `AsyncProcesses.list`."""
        return self._portal.call(self._behind.list())


class Process:
    """One process of a sandbox, as `AsyncProcess`."""

    def __init__(self, portal: Portal, behind: AsyncProcess) -> None:
        self.pid = behind.pid
        self._portal = portal
        self._behind = behind

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pid}>"

    def look(self) -> ProcessInfo:
        """As `AsyncProcess.look`."""
        return self._portal.call(self._behind.look())

    @contextlib.contextmanager
    def attach(self, *, backlog_bytes: int = 0) -> Iterator[Attachment]:
        """As `AsyncProcess.attach`."""
        block = self._behind.attach(backlog_bytes=backlog_bytes)
        with entered(self._portal, block) as behind:
            yield Attachment(self._portal, behind)

    def wait(self) -> Exited:
        """As `AsyncProcess.wait`."""
        return self._portal.call(self._behind.wait())

    def send(self, data: bytes | str) -> None:
        """As `AsyncProcess.send`."""
        self._portal.call(self._behind.send(data))

    def close_stdin(self) -> None:
        """As `AsyncProcess.close_stdin`."""
        self._portal.call(self._behind.close_stdin())

    def signal(self, number: int) -> None:
        """As `AsyncProcess.signal`."""
        self._portal.call(self._behind.signal(number))

    def resize(self, rows: int, cols: int) -> None:
        """As `AsyncProcess.resize`."""
        self._portal.call(self._behind.resize(rows, cols))

    def kill(self) -> None:
        """As `AsyncProcess.kill`. *Idempotent* while it is remembered."""
        self._portal.call(self._behind.kill())


class Attachment:
    """A process that is followed and may be talked to, as `AsyncAttachment`."""

    def __init__(self, portal: Portal, behind: AsyncAttachment) -> None:
        self._portal = portal
        self._behind = behind

    def __iter__(self) -> Iterator[Event]:
        """Yield what happens, up to and with the end, as `AsyncAttachment`."""
        return iterated(self._portal, aiter(self._behind))

    def write(self, data: bytes | str) -> None:
        """As `AsyncAttachment.write`."""
        self._portal.call(self._behind.write(data))

    def close_stdin(self) -> None:
        """As `AsyncAttachment.close_stdin`."""
        self._portal.call(self._behind.close_stdin())

    def signal(self, number: int) -> None:
        """As `AsyncAttachment.signal`."""
        self._portal.call(self._behind.signal(number))

    def resize(self, rows: int, cols: int) -> None:
        """As `AsyncAttachment.resize`."""
        self._portal.call(self._behind.resize(rows, cols))
