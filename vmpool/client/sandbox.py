"""Sandbox: a machine that somebody holds, seen from outside."""

from __future__ import annotations

import contextlib
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Unpack

import msgspec

from vmpool.cancellation import uninterrupted
from vmpool.client.checkpoints import IfTaken, Keep, reference_of
from vmpool.client.connection import Connection, Repeat, Request, path_of
from vmpool.client.contexts import AsyncContexts
from vmpool.client.execution import AsyncExecution, AsyncInteraction, drain
from vmpool.client.files import AsyncFiles
from vmpool.client.network import AsyncNetwork
from vmpool.client.options import CellOptions, ExecOptions, ForkOptions, TaskOptions, body_of
from vmpool.client.ports import AsyncPorts, Forward
from vmpool.client.problem import error_of
from vmpool.client.processes import AsyncProcesses
from vmpool.client.values import CheckpointInfo, Forked, ForkedChild, SandboxInfo, read
from vmpool.errors import InfrastructureError, NotFoundError, VmpoolError
from vmpool.model import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import aiohttp

    from vmpool.client.result import Result

log = logging.getLogger(__name__)


class AsyncSandbox:
    """One sandbox of a server. Made by a client; holds nothing that has to be closed.

    Attributes:
        id: The server's name for it.
        files: Its file system.
        processes: Its programs that were started to stay.
        contexts: Its interpreters that keep their state.
        ports: What listens in it.
        network: What it was denied, and its packets.
        created: What the server said when it was made; `None` when it was there before.
    """

    def __init__(
        self, connection: Connection, id: str, *, created: SandboxInfo | None = None
    ) -> None:
        self.id = id
        self.files = AsyncFiles(connection, id)
        self.processes = AsyncProcesses(connection, id)
        self.contexts = AsyncContexts(connection, id)
        self.ports = AsyncPorts(connection, id)
        self.network = AsyncNetwork(connection, id)
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

    async def run_code(
        self, code: str, *, language: str = "python", **options: Unpack[CellOptions]
    ) -> Result:
        """Run code in the language's own context, whose state stays; the first time makes it.

        Args:
            code: Source.
            language: `python`, `bash`, or `javascript` where the image has it.
            options: See `CellOptions`.

        Raises:
            VmpoolError: As `AsyncContext.run`.
        """
        return await self.contexts[language].run(code, **options)

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

    def forward(
        self, port: int, local_port: int = 0
    ) -> contextlib.AbstractAsyncContextManager[Forward]:
        """Have a port of this machine lead to one of it for a block; see `AsyncPort.forward`."""
        return self.ports[port].forward(local_port)

    async def look(self) -> SandboxInfo:
        """Return what the server says of it now.

        Raises:
            NotFoundError: `sandbox_not_found` or `sandbox_ended`.
            VmpoolError: The server was lost.
        """
        request = Request(method="GET", path=path_of("sandboxes", self.id))
        return read(await self._connection.call(request, repeat=Repeat.WHEN_LOST), SandboxInfo)

    async def pause(self, *, keep: Keep = "memory") -> SandboxInfo:
        """Save it and end its machine: what it was is in files, and uses neither memory nor CPU.

        Whatever runs in it stops where it is and goes on with `resume`.

        Args:
            keep: With `disk` no more is kept than what is on its disk: what runs in it is gone, and
                `resume` boots it. It needs a template that was made with a disk.

        Raises:
            ConflictError: It is paused already.
            InvalidRequestError: `disk_missing`.
            NotFoundError: `sandbox_not_found` or `sandbox_ended`.
            VmpoolError: It could not be saved and runs on; or the server was lost.
        """
        return await self._turn("pause", {} if keep == "memory" else {"keep": keep})

    async def resume(self, *, timeout: float | None = None, keep: Keep = "memory") -> SandboxInfo:
        """Go on where it was paused, under its own names, with fresh randomness and the time now.

        One that was paused with its disk alone is booted, which takes as long as that does.

        Args:
            timeout: Seconds from now until its time is up; unless given, what was left of it.
            keep: With `disk` it is booted on its disk, also when its memory was kept.

        Raises:
            CapacityError: There is no room for its machine; it stays paused.
            ConflictError: It is not paused.
            NotFoundError: `sandbox_not_found` or `sandbox_ended`.
            VmpoolError: It could not be restored and stays paused; or the server was lost.
        """
        how: dict[str, object] = {} if timeout is None else {"timeout": timeout}
        return await self._turn("resume", how if keep == "memory" else how | {"keep": keep})

    async def checkpoint(
        self,
        name: str | None = None,
        *,
        if_taken: IfTaken = "refuse",
        keep: Keep = "memory",
    ) -> CheckpointInfo:
        """Keep what it is now, memory and disk; it runs on.

        Sent again when the answer is lost, and taken once all the same.

        Args:
            name: Yours, unique among your checkpoints; lower case, digits, `.`, `_` and `-`.
            if_taken: With `move` another that has the name gives it up, and goes by its id.
            keep: With `disk` no more is kept than what is on its disk, and what is made of that is
                booted. It needs a template that was made with a disk.

        Raises:
            ConflictError: `checkpoint_exists`: another one has this name, and keeps it.
            InvalidRequestError: `disk_missing`.
            NotFoundError: `sandbox_not_found` or `sandbox_ended`.
            VmpoolError: It could not be kept, and nothing of it is; or the server was lost.
        """
        body = {} if name is None else {"name": name, "if_taken": if_taken}
        how = body if keep == "memory" else body | {"keep": keep}
        return read(await self._ask("checkpoints", how), CheckpointInfo)

    async def rollback(self, checkpoint: CheckpointInfo | str) -> SandboxInfo:
        """Go back to a checkpoint: what was done since is gone, and what runs is broken off.

        Args:
            checkpoint: One of this sandbox, its id or its name.

        Raises:
            NotFoundError: `checkpoint_not_found`, `sandbox_not_found` or `sandbox_ended`.
            VmpoolError: It could not be restored, and the sandbox is as it was; or the server was
                lost.
        """
        return await self._turn("rollback", {"checkpoint": reference_of(checkpoint)})

    async def fork(self, count: int = 1, **options: Unpack[ForkOptions]) -> list[AsyncSandbox]:
        """Make children of it as it is now, all of them or none; it runs on, whatever happens.

        What runs in it goes on in each child too. They live until their timeouts or `kill`. Sent
        again when the answer is lost; there are `count` all the same.

        Args:
            count: How many.
            options: See `ForkOptions`.

        Raises:
            CapacityError: There is no room for so many.
            ConflictError: It is paused, or about to be.
            NotFoundError: `sandbox_not_found` or `sandbox_ended`.
            VmpoolError: That of the first child that could not be made; those that were have been
                killed. Or the server was lost.
        """
        found = await self.try_fork(count, **options)
        made = [child for child in found if isinstance(child, AsyncSandbox)]
        for failure in found:
            if not isinstance(failure, AsyncSandbox):
                failure.add_note(f"{len(made)} of {count} children were made, and killed again")
                await uninterrupted(_kill_all(made))
                raise failure
        return made

    async def try_fork(
        self, count: int = 1, **options: Unpack[ForkOptions]
    ) -> list[AsyncSandbox | VmpoolError]:
        """As `fork`, and return what came of each child: it, or the error in its place.

        Raises:
            VmpoolError: As `fork`, when there is no child at all.
        """
        body = body_of(None, {"count": count, **options})
        forked = read(await self._ask("fork", body), Forked)
        return [self._child(child) for child in forked.children]

    def _child(self, child: ForkedChild) -> AsyncSandbox | VmpoolError:
        if child.sandbox is not None:
            return AsyncSandbox(self._connection, child.sandbox.id, created=child.sandbox)
        return error_of(child.problem or {})

    async def _turn(self, verb: str, body: dict[str, object]) -> SandboxInfo:
        return read(await self._ask(verb, body), SandboxInfo)

    async def _ask(self, verb: str, body: Mapping[str, object]) -> bytes:
        """Ask for what is done once, however often it has to be asked for."""
        path = path_of("sandboxes", self.id, verb)
        request = Request(method="POST", path=path, body=body, key=new_id())
        return await self._connection.call(request, repeat=Repeat.WHEN_LOST)

    async def set_timeout(self, timeout: float) -> SandboxInfo:
        """Let it have `timeout` seconds from now: more or fewer than it had.

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


async def _kill_all(sandboxes: list[AsyncSandbox]) -> None:
    """Kill what can be killed; the rest lives until its timeout, and the log says so."""
    for sandbox in sandboxes:
        try:
            await sandbox.kill()
        except VmpoolError as err:
            log.warning("sandbox=%s lives until its timeout: %s", sandbox.id, err)
