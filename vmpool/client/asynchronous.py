"""Asynchronous: a server's client for asyncio.

It decides what is one call and what may be sent again; how is said in `connection`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Unpack

from vmpool.cancellation import uninterrupted
from vmpool.client.checkpoints import AsyncCheckpoints
from vmpool.client.connection import Connection, Repeat, Request, path_of
from vmpool.client.endpoint import find_endpoint
from vmpool.client.options import RunOptions, SandboxOptions, TemplateOptions, body_of
from vmpool.client.result import read_run
from vmpool.client.sandbox import AsyncSandbox
from vmpool.client.values import (
    Health,
    ImageInfo,
    ImageListing,
    SandboxInfo,
    SandboxPage,
    TemplateInfo,
    TemplateListing,
    UsageInfo,
    read,
)
from vmpool.errors import InfrastructureError, VmpoolError
from vmpool.model import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path
    from types import TracebackType
    from typing import Self

    from vmpool.client.result import Result

log = logging.getLogger(__name__)

PAGE = 100
"""Sandboxes that are asked for at once."""

FAREWELL_SECONDS = 30.0
"""How long the end of a block waits for its sandbox's."""


class AsyncClient:
    """A client of one server. Close it when done, or use it in `async with`.

    Attributes:
        checkpoints: What sandboxes were, kept on the server.

    Args:
        server: Its address; else `VMPOOL_SERVER`, the server that runs on this host, or
            `http://127.0.0.1:8700`.
        token: What opens it; else `token_file`, `VMPOOL_TOKEN`, or for a server on this host what
            it left for us.
        token_file: File that holds the token.
        state: State directory in which a server on this host is looked for.
        timeout: Seconds without a byte after which the server counts as silent. Unless it is given,
            a call waits for as long as the work takes, which the server limits.

    Raises:
        InvalidRequestError: `token_unreadable`.
    """

    def __init__(
        self,
        server: str | None = None,
        *,
        token: str | None = None,
        token_file: Path | None = None,
        state: Path | None = None,
        timeout: float | None = None,
    ) -> None:
        endpoint = find_endpoint(server=server, token=token, token_file=token_file, state=state)
        self._connection = Connection(endpoint, timeout=timeout)
        self.checkpoints = AsyncCheckpoints(self._connection)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    @property
    def url(self) -> str:
        """The server's address."""
        return self._connection.endpoint.url

    async def __aenter__(self) -> Self:
        """Return it; nothing is connected before the first call."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.close()

    async def close(self) -> None:
        """Drop all connections; what runs over them is ended by the server. *Idempotent.*

        Sandboxes that were created live on.
        """
        await self._connection.close()

    async def run(self, code: str | None = None, **options: Unpack[RunOptions]) -> Result:
        """Run something in a machine of its own, which is gone afterwards.

        Sent again when the answer is lost, and done once all the same.

        Args:
            code: Source to run; or give `argv`.
            options: See `RunOptions`.

        Raises:
            CapacityError: There was no machine in time.
            VmpoolError: It could not be run, or the server was lost. Code that fails is no error;
                see `Result.check`.
        """
        body = body_of(code, options)
        request = Request(method="POST", path=path_of("run"), body=body, key=new_id())
        return read_run(await self._connection.call(request, repeat=Repeat.WHEN_LOST))

    async def create(self, **options: Unpack[SandboxOptions]) -> AsyncSandbox:
        """Make a sandbox, of a template or a checkpoint; it lives until its timeout or `kill`.

        Sent again when the answer is lost; there is one sandbox all the same, and none when this is
        cancelled while the server can be reached.

        Args:
            options: See `SandboxOptions`.

        Raises:
            CapacityError: There was no machine in time.
            VmpoolError: It could not be made, or the server was lost.
        """
        body = body_of(None, options)
        request = Request(method="POST", path=path_of("sandboxes"), body=body, key=new_id())
        answer = await self._connection.call(request, repeat=Repeat.WHEN_LOST)
        made = read(answer, SandboxInfo)
        return AsyncSandbox(self._connection, made.id, created=made)

    @contextlib.asynccontextmanager
    async def sandbox(self, **options: Unpack[SandboxOptions]) -> AsyncIterator[AsyncSandbox]:
        """Make a sandbox for the time of a block; it is killed at the end unless it was detached.

        Args:
            options: See `SandboxOptions`.

        Raises:
            VmpoolError: As `create`, or the server was lost at the end.
        """
        sandbox = await self.create(**options)
        try:
            yield sandbox
        except BaseException:
            try:
                await _leave(sandbox)
            except VmpoolError as err:  # the block's own error is the better word
                log.warning("sandbox=%s lives until its timeout: %s", sandbox.id, err)
            raise
        await _leave(sandbox)

    def attach(self, id: str) -> AsyncSandbox:
        """Return a sandbox that is there already; asks nothing, so it may not be."""
        return AsyncSandbox(self._connection, id)

    async def sandboxes(
        self, metadata: Mapping[str, str] | None = None
    ) -> AsyncIterator[SandboxInfo]:
        """Yield your sandboxes, newest first, with all of `metadata`.

        Raises:
            VmpoolError: The server was lost.
        """
        wanted = [f"{name}={value}" for name, value in (metadata or {}).items()]
        cursor: str | None = None
        while True:
            path = path_of("sandboxes", metadata=wanted, limit=PAGE, cursor=cursor)
            page = read(await self._ask(path), SandboxPage)
            for info in page.sandboxes:
                yield info
            cursor = page.next_cursor
            if cursor is None:
                return

    async def templates(self) -> tuple[TemplateInfo, ...]:
        """Return all templates with their pools.

        Raises:
            VmpoolError: The server was lost.
        """
        return read(await self._ask(path_of("templates")), TemplateListing).templates

    async def template(self, name: str) -> TemplateInfo:
        """Return one template with its pool.

        Raises:
            NotFoundError: `template_not_found`.
            VmpoolError: The server was lost.
        """
        return read(await self._ask(path_of("templates", name)), TemplateInfo)

    async def create_template(
        self, name: str, image: str | None = None, **options: Unpack[TemplateOptions]
    ) -> TemplateInfo:
        """Make a template of an image or of a checkpoint; it is ready when this returns.

        Args:
            name: A template of that name is replaced.
            image: Name or digest of what is booted; `None` where a checkpoint is given.
            options: See `TemplateOptions`.

        Raises:
            VmpoolError: It could not be made; or the server was lost, and it may be made yet.
        """
        body = {"name": name, **body_of(None, options)}
        if image is not None:
            body["image"] = image
        request = Request(method="POST", path=path_of("templates"), body=body)
        return read(await self._connection.call(request), TemplateInfo)

    async def remove_template(self, name: str) -> None:
        """Remove a template with its snapshot; its sandboxes live on.

        Raises:
            NotFoundError: `template_not_found`.
            VmpoolError: The server was lost.
        """
        await self._connection.call(Request(method="DELETE", path=path_of("templates", name)))

    async def images(self) -> tuple[ImageInfo, ...]:
        """Return all images.

        Raises:
            VmpoolError: The server was lost.
        """
        return read(await self._ask(path_of("images")), ImageListing).images

    async def usage(self, tenant: str | None = None) -> UsageInfo:
        """Return what a tenant has, and what it may have.

        Args:
            tenant: Its id; the token's own when `None`. Another's takes the scope `operator`.

        Raises:
            ForbiddenError: `scope_missing`.
            VmpoolError: The server was lost.
        """
        return read(await self._ask(path_of("usage", tenant=tenant)), UsageInfo)

    async def health(self) -> Health:
        """Return whether the server serves; needs no token.

        Raises:
            VmpoolError: The server was lost.
        """
        return read(await self._ask("/healthz"), Health)

    async def _ask(self, path: str) -> bytes:
        request = Request(method="GET", path=path)
        return await self._connection.call(request, repeat=Repeat.WHEN_LOST)


async def _leave(sandbox: AsyncSandbox) -> None:
    """End a block's sandbox, also when the block was cancelled."""
    if not sandbox.detached:
        await uninterrupted(_kill(sandbox))


async def _kill(sandbox: AsyncSandbox) -> None:
    try:
        async with asyncio.timeout(FAREWELL_SECONDS):
            await sandbox.kill()
    except TimeoutError as err:
        raise InfrastructureError(
            f"the server did not end sandbox {sandbox.id!r} within {FAREWELL_SECONDS} s",
            code="server_silent",
        ) from err
