"""Processes: programs of a sandbox that were started to stay, seen from outside."""

from __future__ import annotations

import contextlib
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from vmpool.client.connection import Repeat, Request, path_of
from vmpool.client.events import Exited
from vmpool.client.execution import PIECE_BYTES, AsyncExecution
from vmpool.client.values import read
from vmpool.errors import InfrastructureError, NotFoundError
from vmpool.model import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import aiohttp

    from vmpool.client.connection import Connection
    from vmpool.client.events import Event


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminalSize:
    """A terminal's size in characters."""

    rows: int = 24
    cols: int = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessEnd:
    """How a process ended, as `Exited` has it."""

    exit_code: int | None
    signal: int | None
    timed_out: bool
    out_of_memory: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """A process as it was when the server was asked.

    Attributes:
        tag: Its starter's word for it.
        pty: The size of its terminal, `None` when it runs at none.
        stdin_open: Whether it takes input.
        output_bytes: What it has written so far; `backlog_bytes` of it are held.
        cut: `env` and the last of `argv` were too large to be remembered.
        ended: How it ended, `None` while it runs.
    """

    pid: int
    tag: str | None
    argv: tuple[str, ...]
    env: dict[str, str] = field(repr=False)
    cwd: str | None
    user: str
    pty: TerminalSize | None
    stdin_open: bool
    started_at: datetime
    output_bytes: int
    backlog_bytes: int
    cut: bool
    ended: ProcessEnd | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    processes: tuple[ProcessInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Started:
    pid: int


class AsyncAttachment:
    """A process that is followed and may be talked to; iterate over it for its events.

    The first event is `Attached`, the last `Exited`. Who takes the next event late holds the
    process back. Made by a process's `attach`.
    """

    def __init__(
        self,
        connection: Connection,
        socket: aiohttp.ClientWebSocketResponse,
        execution: AsyncExecution,
    ) -> None:
        self._connection = connection
        self._socket = socket
        self._execution = execution

    def __aiter__(self) -> AsyncIterator[Event]:
        """Yield what happens, up to and with the end, as `AsyncExecution`."""
        return aiter(self._execution)

    async def write(self, data: bytes | str) -> None:
        """Send input; what the process does not take any more is dropped.

        Raises:
            InfrastructureError: `server_lost`.
        """
        view = memoryview(data.encode() if isinstance(data, str) else data)
        for at in range(0, len(view), PIECE_BYTES):
            await self._connection.send(self._socket, bytes(view[at : at + PIECE_BYTES]))

    async def close_stdin(self) -> None:
        """Tell the process that there is no more input; at a terminal that is typed instead.

        Raises:
            InfrastructureError: `server_lost`.
        """
        await self._tell(eof=True)

    async def signal(self, number: int) -> None:
        """Send a signal to the process group.

        Raises:
            InfrastructureError: `server_lost`.
        """
        await self._tell(signal=number)

    async def resize(self, rows: int, cols: int) -> None:
        """Set the size of its terminal.

        Raises:
            InfrastructureError: `server_lost`.
        """
        await self._tell(resize={"rows": rows, "cols": cols})

    async def _tell(self, **message: object) -> None:
        await self._connection.send(self._socket, msgspec.json.encode(message).decode())


class AsyncProcess:
    """One process of a sandbox. Made by `AsyncProcesses`; holds nothing that has to be closed.

    Attributes:
        pid: Its process id in the guest.
    """

    def __init__(self, connection: Connection, sandbox_id: str, pid: int) -> None:
        self.pid = pid
        self._connection = connection
        self._all = ("sandboxes", sandbox_id, "processes")
        self._path = (*self._all, str(pid))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pid}>"

    async def look(self) -> ProcessInfo:
        """Return what the server says of it now.

        Raises:
            NotFoundError: `process_not_found`: it ended, and is forgotten.
            VmpoolError: The sandbox ended, or the server was lost.
        """
        request = Request(method="GET", path=path_of(*self._all))
        listed = read(await self._connection.call(request, repeat=Repeat.WHEN_LOST), _Listing)
        for info in listed.processes:
            if info.pid == self.pid:
                return info
        raise NotFoundError(f"there is no process {self.pid}", code="process_not_found")

    @contextlib.asynccontextmanager
    async def attach(self, *, backlog_bytes: int = 0) -> AsyncIterator[AsyncAttachment]:
        """Follow it for the time of a block, and talk to it; it goes on afterwards.

        Args:
            backlog_bytes: What it wrote before now and is told first, at most.

        Raises:
            NotFoundError: `process_not_found`.
            VmpoolError: The sandbox ended, or the server was lost; also while iterating.
        """
        path = path_of(*self._path, "attach", backlog_bytes=backlog_bytes)
        async with contextlib.AsyncExitStack() as stack:
            try:
                socket = await stack.enter_async_context(self._connection.socket(path))
            except InfrastructureError as err:
                if err.error_code == "not_vmpool":
                    await self.look()  # a refused socket has no problem document; this has
                raise
            messages = await stack.enter_async_context(aclosing(self._connection.messages(socket)))
            execution = await stack.enter_async_context(aclosing(AsyncExecution(messages)))
            yield AsyncAttachment(self._connection, socket, execution)

    async def wait(self) -> Exited:
        """Return how it ended, once it has; its output meanwhile is dropped.

        Raises:
            NotFoundError: `process_not_found`.
            VmpoolError: The sandbox ended, or the server was lost.
        """
        request = Request(method="GET", path=path_of(*self._path))
        async with (
            self._connection.open(request) as response,
            aclosing(self._connection.lines(response)) as lines,
            aclosing(AsyncExecution(lines)) as execution,
        ):
            async for event in execution:
                if isinstance(event, Exited):
                    return event
        raise AssertionError("a stream without an end raises")

    async def send(self, data: bytes | str) -> None:
        """Hand it input; returns when it has all of it.

        Raises:
            ConflictError: `stdin_closed` or `process_ended`.
            VmpoolError: As `wait`; how much it has of it is unknown then.
        """
        await self._input(data.encode() if isinstance(data, str) else data, eof=None)

    async def close_stdin(self) -> None:
        """Tell it that there is no more input; at a terminal that is typed instead.

        Raises:
            ConflictError: `stdin_closed` or `process_ended`.
            VmpoolError: As `wait`.
        """
        await self._input(b"", eof="true")

    async def signal(self, number: int) -> None:
        """Send a signal to its group.

        Raises:
            ConflictError: `process_ended`.
            VmpoolError: As `wait`; whether it was sent is unknown then.
        """
        body = {"signal": number}
        await self._connection.call(
            Request(method="POST", path=path_of(*self._path, "signal"), body=body)
        )

    async def resize(self, rows: int, cols: int) -> None:
        """Set the size of its terminal.

        Raises:
            ConflictError: `no_terminal` or `process_ended`.
            VmpoolError: As `wait`.
        """
        path = path_of(*self._path, "resize")
        request = Request(method="POST", path=path, body={"rows": rows, "cols": cols})
        await self._connection.call(request, repeat=Repeat.WHEN_LOST)

    async def kill(self) -> None:
        """Kill its group; it is gone when this returns. *Idempotent* while it is remembered.

        Raises:
            NotFoundError: `process_not_found`.
            VmpoolError: As `wait`.
        """
        request = Request(method="DELETE", path=path_of(*self._path))
        await self._connection.call(request, repeat=Repeat.WHEN_LOST)

    async def _input(self, data: bytes, *, eof: str | None) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(data), PIECE_BYTES):
                yield data[at : at + PIECE_BYTES]

        request = Request(
            method="PUT",
            path=path_of(*self._path, "input", eof=eof),
            headers={"Content-Type": "application/octet-stream"},
        )
        async with self._connection.open(request, content=pieces()) as response:
            await self._connection.read(response)


class AsyncProcesses:
    """The processes of one sandbox that were started to stay. Made by a sandbox."""

    def __init__(self, connection: Connection, sandbox_id: str) -> None:
        self._connection = connection
        self._sandbox_id = sandbox_id

    async def start(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        cwd: str | None = None,
        user: str | None = None,
        timeout: float | None = None,
        pty: TerminalSize | None = None,
        tag: str | None = None,
    ) -> AsyncProcess:
        """Start a program that outlives this client; sent again when the answer is lost.

        Args:
            argv: The program and its arguments.
            env: Environment variables.
            cwd: Working directory; the account's home if left out.
            user: Account in the guest.
            timeout: Seconds until its group is killed; no limit if left out.
            pty: Size of a terminal that it is to run at.
            tag: A word of yours for it.

        Raises:
            InvalidRequestError: It could not be started; the code says why.
            TaskError: `guest_no_resources`.
            VmpoolError: The sandbox ended, or the server was lost.
        """
        terminal = None if pty is None else {"rows": pty.rows, "cols": pty.cols}
        options = {
            "env": env, "cwd": cwd, "user": user, "timeout": timeout, "pty": terminal, "tag": tag
        }  # fmt: skip
        body = {name: value for name, value in options.items() if value is not None}
        path = path_of("sandboxes", self._sandbox_id, "processes")
        request = Request(method="POST", path=path, body={"argv": argv, **body}, key=new_id())
        started = read(await self._connection.call(request, repeat=Repeat.WHEN_LOST), _Started)
        return self.find(started.pid)

    def find(self, pid: int) -> AsyncProcess:
        """Return a process that is there already; asks nothing, so it may not be."""
        return AsyncProcess(self._connection, self._sandbox_id, pid)

    async def list(self) -> tuple[ProcessInfo, ...]:
        """Return those that run, and the last that ended, in the order of their starts.

        Raises:
            VmpoolError: The sandbox ended, or the server was lost.
        """
        path = path_of("sandboxes", self._sandbox_id, "processes")
        request = Request(method="GET", path=path)
        answer = await self._connection.call(request, repeat=Repeat.WHEN_LOST)
        return read(answer, _Listing).processes
