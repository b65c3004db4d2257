"""Contexts: a sandbox's interpreters that keep their state, seen from outside."""

from __future__ import annotations

import contextlib
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Unpack

from vmpool.client.connection import Connection, Repeat, Request, path_of
from vmpool.client.execution import AsyncExecution, drain
from vmpool.client.options import body_of
from vmpool.client.values import read
from vmpool.errors import NotFoundError
from vmpool.model import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.client.options import CellOptions, ContextOptions
    from vmpool.client.result import Result

DEFAULT: Final = "default"
"""Another name for the context `python`; those named like a language need no making."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextInfo:
    """A context as it was when the server was asked.

    Attributes:
        state: `starting`, `idle`, `busy` or `down`; from the last the next execution wakes it.
        pid: Of its interpreter, `None` while there is none.
        executions: How many its interpreter was given.
        waiting: How many wait behind the one that runs.
    """

    id: str
    language: str
    cwd: str
    user: str
    state: str
    pid: int | None
    executions: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    contexts: tuple[ContextInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Interrupted:
    interrupted: bool


class AsyncContext:
    """One interpreter, whose state stays from one execution to the next. Made by `AsyncContexts`.

    Attributes:
        id: The guest's name for it.
        created: What the server said when it was made; `None` when it was there before.
    """

    def __init__(
        self,
        connection: Connection,
        sandbox_id: str,
        id: str,
        *,
        created: ContextInfo | None = None,
    ) -> None:
        self.id = id
        self.created = created
        self._connection = connection
        self._path = ("sandboxes", sandbox_id, "contexts", id)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id}>"

    async def run(self, code: str, **options: Unpack[CellOptions]) -> Result:
        """Run code to its end, in its turn, and return what came of it.

        Of output and displays the first 16 MiB each are kept. Cancelling it interrupts the code.

        Args:
            code: Source in the context's language.
            options: See `CellOptions`.

        Raises:
            ConflictError: `context_busy`; `context_lost`: the interpreter ended before it began.
            NotFoundError: `context_not_found`.
            VmpoolError: It was broken off, or the server was lost. Code that fails is no error; see
                `Result.check`.
        """
        async with self._connection.open(self._execute(code, options)) as response:
            return await drain(self._connection.lines(response))

    @contextlib.asynccontextmanager
    async def exec(
        self, code: str, **options: Unpack[CellOptions]
    ) -> AsyncIterator[AsyncExecution]:
        """Run code for the time of a block, and follow it; leaving early interrupts it.

        Args:
            code: Source in the context's language.
            options: See `CellOptions`.

        Raises:
            VmpoolError: As `run`.
        """
        async with (
            self._connection.open(self._execute(code, options)) as response,
            aclosing(self._connection.lines(response)) as lines,
            aclosing(AsyncExecution(lines)) as execution,
        ):
            yield execution

    async def interrupt(self) -> bool:
        """Interrupt what runs; its state stays. Return whether anything ran.

        Raises:
            NotFoundError: `context_not_found`.
            VmpoolError: The server was lost.
        """
        return read(await self._ask("interrupt"), _Interrupted).interrupted

    async def restart(self) -> ContextInfo:
        """Have it begin anew, without its state; what runs and waits ends.

        Raises:
            NotFoundError: `context_not_found`.
            VmpoolError: It does not start, or the server was lost.
        """
        return read(await self._ask("restart"), ContextInfo)

    async def close(self) -> None:
        """End it, and all that runs and waits in it. *Idempotent.*

        Raises:
            VmpoolError: The server was lost.
        """
        request = Request(method="DELETE", path=path_of(*self._path))
        try:
            await self._connection.call(request, repeat=Repeat.WHEN_LOST)
        except NotFoundError as err:
            if err.error_code != "context_not_found":
                raise

    def _execute(self, code: str, options: CellOptions) -> Request:
        path = path_of(*self._path, "exec")
        return Request(method="POST", path=path, body=body_of(code, options))

    async def _ask(self, verb: str) -> bytes:
        return await self._connection.call(Request(method="POST", path=path_of(*self._path, verb)))


class AsyncContexts:
    """The contexts of one sandbox."""

    def __init__(self, connection: Connection, sandbox_id: str) -> None:
        self._connection = connection
        self._sandbox_id = sandbox_id
        self._path = path_of("sandboxes", sandbox_id, "contexts")

    def __getitem__(self, id: str) -> AsyncContext:
        """Return one that is there already; asks nothing. Languages' names need no making."""
        return AsyncContext(self._connection, self._sandbox_id, id)

    async def create(self, **options: Unpack[ContextOptions]) -> AsyncContext:
        """Make a context; it takes executions when this returns.

        Sent again when the answer is lost, and made once all the same.

        Args:
            options: See `ContextOptions`.

        Raises:
            ConflictError: `too_many_contexts`.
            InvalidRequestError: `language_unavailable`, or it cannot be made otherwise.
            VmpoolError: The server was lost.
        """
        request = Request(method="POST", path=self._path, body=dict(options), key=new_id())
        answer = await self._connection.call(request, repeat=Repeat.WHEN_LOST)
        made = read(answer, ContextInfo)
        return AsyncContext(self._connection, self._sandbox_id, made.id, created=made)

    async def list(self) -> tuple[ContextInfo, ...]:
        """Return all contexts, the oldest first.

        Raises:
            VmpoolError: The server was lost.
        """
        request = Request(method="GET", path=self._path)
        answer = await self._connection.call(request, repeat=Repeat.WHEN_LOST)
        return read(answer, _Listing).contexts
