"""Sandbox: a machine that somebody holds, seen from outside."""

from __future__ import annotations

import contextlib
from contextlib import aclosing
from typing import TYPE_CHECKING, Unpack

import msgspec

from vmpool.client.connection import Connection, Repeat, Request, path_of
from vmpool.client.execution import AsyncExecution, AsyncInteraction, drain
from vmpool.client.files import AsyncFiles
from vmpool.client.options import ExecOptions, TaskOptions, body_of
from vmpool.client.values import SandboxInfo, read
from vmpool.errors import InfrastructureError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import aiohttp

    from vmpool.client.result import Result


class AsyncSandbox:
    """One sandbox of a server. Made by a client; holds nothing that has to be closed.

    Attributes:
        id: The server's name for it.
        files: Its file system.
        created: What the server said when it was made; `None` when it was there before.
    """

    def __init__(
        self, connection: Connection, id: str, *, created: SandboxInfo | None = None
    ) -> None:
        self.id = id
        self.files = AsyncFiles(connection, id)
        self.created = created
        self.detached = False
        self._connection = connection

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    async def run(self, code: str | None = None, **options: Unpack[ExecOptions]) -> Result:
        """Run something to its end and return what came of it.

        Of output and displays the first 16 MiB each are kept. Cancelling it kills the program.

        Args:
            code: Source to run; or give `argv`.
            options: See `ExecOptions`.

        Raises:
            VmpoolError: It could not be started, was broken off, or the server was lost. Code that
                fails is no error; see `Result.check`.
        """
        async with self._connection.open(self._execute(code, options)) as response:
            return await drain(self._connection.lines(response))

    @contextlib.asynccontextmanager
    async def exec(
        self, code: str | None = None, **options: Unpack[ExecOptions]
    ) -> AsyncIterator[AsyncExecution]:
        """Run something for the time of a block, and follow it; leaving early kills it.

        Args:
            code: Source to run; or give `argv`.
            options: See `ExecOptions`.

        Raises:
            VmpoolError: As `run`.
        """
        async with (
            self._connection.open(self._execute(code, options)) as response,
            aclosing(self._connection.lines(response)) as lines,
            aclosing(AsyncExecution(lines)) as execution,
        ):
            yield execution

    @contextlib.asynccontextmanager
    async def interact(
        self, code: str | None = None, **options: Unpack[TaskOptions]
    ) -> AsyncIterator[AsyncInteraction]:
        """Run something that takes input while it runs, for the time of a block.

        Leaving early kills it.

        Args:
            code: Source to run; or give `argv`.
            options: See `TaskOptions`.

        Raises:
            VmpoolError: As `run`; also while iterating, for it starts after the connection is made.
        """
        async with (
            self._socket() as socket,
            aclosing(self._connection.messages(socket)) as messages,
            aclosing(AsyncExecution(messages)) as execution,
        ):
            asked = msgspec.json.encode(body_of(code, options)).decode()
            await self._connection.send(socket, asked)
            yield AsyncInteraction(self._connection, socket, execution)

    async def look(self) -> SandboxInfo:
        """Return what the server says of it now.

        Raises:
            NotFoundError: `sandbox_not_found` or `sandbox_ended`.
            VmpoolError: The server was lost.
        """
        request = Request(method="GET", path=path_of("sandboxes", self.id))
        return read(await self._connection.call(request, repeat=Repeat.WHEN_LOST), SandboxInfo)

    async def set_timeout(self, timeout: float) -> SandboxInfo:
        """Let it live for `timeout` seconds from now: longer or shorter than it had.

        Raises:
            NotFoundError: `sandbox_not_found` or `sandbox_ended`.
            VmpoolError: The server was lost.
        """
        path = path_of("sandboxes", self.id, "timeout")
        request = Request(method="POST", path=path, body={"timeout": timeout})
        return read(await self._connection.call(request, repeat=Repeat.WHEN_LOST), SandboxInfo)

    async def kill(self) -> None:
        """End it; its machine is gone when this returns. *Idempotent.*

        Raises:
            NotFoundError: `sandbox_not_found`: there never was one, or it is not yours.
            VmpoolError: The server was lost; it lives no longer than its timeout.
        """
        request = Request(method="DELETE", path=path_of("sandboxes", self.id))
        try:
            await self._connection.call(request, repeat=Repeat.WHEN_LOST)
        except NotFoundError as err:
            if err.error_code != "sandbox_ended":
                raise

    def detach(self) -> None:
        """Let it live on when its block ends, until its timeout or `kill`."""
        self.detached = True

    def _execute(self, code: str | None, options: ExecOptions) -> Request:
        path = path_of("sandboxes", self.id, "exec")
        return Request(method="POST", path=path, body=body_of(code, options))

    @contextlib.asynccontextmanager
    async def _socket(self) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Open the socket; a refusal has no problem document, but one for a file says the same."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                opened = self._connection.socket(path_of("sandboxes", self.id, "exec"))
                socket = await stack.enter_async_context(opened)
            except InfrastructureError as err:
                if err.error_code == "not_vmpool":
                    await self.files.stat("/")
                raise
            yield socket
