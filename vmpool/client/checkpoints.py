"""Checkpoints: what sandboxes were, kept on a server."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vmpool.client.connection import Connection, Repeat, Request, path_of
from vmpool.client.local_files import read_chunks, reading, replacing
from vmpool.client.values import CheckpointInfo, CheckpointPage, read

if TYPE_CHECKING:
    from vmpool.client.sandbox import AsyncSandbox

Cargo = Literal["delta", "with_base"]
"""What goes along with an exported checkpoint."""

Confidence = Literal["keep", "share"]
"""Whether a checkpoint is exported whose sandbox was told secrets."""

IfTaken = Literal["refuse", "move"]
"""What becomes of a name that another checkpoint of yours has."""

Keep = Literal["memory", "disk"]
"""What a pause keeps: all that a sandbox is, or what is on its disk."""

PAGE = 100
"""Checkpoints that are asked for at once."""


class AsyncCheckpoints:
    """The checkpoints of one server that are yours. Part of a client.

    They are taken by `AsyncSandbox.checkpoint`, live longer than their sandbox, and are gone back
    to by `AsyncSandbox.rollback`, or made into other sandboxes by `AsyncClient.create`.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def list(self, sandbox: AsyncSandbox | str | None = None) -> tuple[CheckpointInfo, ...]:
        """Return them, newest first.

        Args:
            sandbox: Only those that were taken of this one, or of the one of this id.

        Raises:
            VmpoolError: The server was lost.
        """
        wanted = sandbox if sandbox is None or isinstance(sandbox, str) else sandbox.id
        found: list[CheckpointInfo] = []
        cursor: str | None = None
        while True:
            path = path_of("checkpoints", sandbox=wanted, limit=PAGE, cursor=cursor)
            page = read(await self._ask("GET", path), CheckpointPage)
            found += page.checkpoints
            cursor = page.next_cursor
            if cursor is None:
                return tuple(found)

    async def look(self, checkpoint: CheckpointInfo | str) -> CheckpointInfo:
        """Return what the server says of one now.

        Args:
            checkpoint: Its id or its name.

        Raises:
            NotFoundError: `checkpoint_not_found`.
            VmpoolError: The server was lost.
        """
        path = path_of("checkpoints", reference_of(checkpoint))
        return read(await self._ask("GET", path), CheckpointInfo)

    async def remove(self, checkpoint: CheckpointInfo | str) -> None:
        """Remove one for good; what was made of it lives on. Not sent again when it is lost.

        Args:
            checkpoint: Its id or its name.

        Raises:
            NotFoundError: `checkpoint_not_found`.
            ConflictError: `checkpoint_in_use`: a sandbox is being restored from it just now.
            VmpoolError: The server was lost.
        """
        path = path_of("checkpoints", reference_of(checkpoint))
        await self._connection.call(Request(method="DELETE", path=path))

    async def export_to(
        self,
        checkpoint: CheckpointInfo | str,
        target: Path | str,
        *,
        cargo: Cargo = "delta",
        secrets: Confidence = "keep",
    ) -> None:
        """Write one as one compressed file, which is replaced when all is there.

        Whoever has the file has all that was in the sandbox's memory, its secrets among that.

        Args:
            checkpoint: Its id or its name.
            target: A file of this host.
            cargo: `with_base` for a server that has not the template's snapshot, but its image.
            secrets: `share` to have it also when its sandbox was told secrets, with its memory.

        Raises:
            NotFoundError: `checkpoint_not_found`.
            ConflictError: `checkpoint_secret`; its sandbox was told secrets.
            InvalidRequestError: `file_unwritable`.
            VmpoolError: The server refused or was lost.
        """
        path = path_of(
            "checkpoints", reference_of(checkpoint), "export", cargo=cargo, secrets=secrets
        )
        async with self._connection.open(Request(method="GET", path=path)) as response:
            with replacing(Path(target)) as file:
                async for chunk in self._connection.chunks(response):
                    await asyncio.to_thread(file.write, chunk)

    async def import_from(
        self, source: Path | str, *, name: str | None = None, trust: str | None = None
    ) -> CheckpointInfo:
        """Have the server keep what `export_to` wrote; for the scope `operator`. *Not idempotent.*

        Its machine is run as it is: import only what comes from who may run any on that server.

        Args:
            source: A file of this host.
            name: What it is called there; `None` for what it was called.
            trust: Public key of the host that exported it, to be believed for this once; without,
                the server must trust it already.

        Raises:
            ForbiddenError: `scope_missing`; the token has not the scope `operator`.
            InvalidRequestError: `file_unreadable`, `parcel_damaged`.
            ConflictError: `checkpoint_exists`.
            VmpoolError: The server refused or was lost.
        """
        request = Request(
            method="POST",
            path=path_of("checkpoints", "import", name=name, trust=trust),
            headers={"Content-Type": "application/zstd"},
        )
        with reading(Path(source)) as file:
            content = read_chunks(file)
            async with self._connection.open(request, content=content) as response:
                return read(await self._connection.read(response), CheckpointInfo)

    async def _ask(self, method: str, path: str) -> bytes:
        request = Request(method=method, path=path)
        return await self._connection.call(request, repeat=Repeat.WHEN_LOST)


def reference_of(checkpoint: CheckpointInfo | str) -> str:
    """Return how a request names a checkpoint."""
    return checkpoint if isinstance(checkpoint, str) else checkpoint.id
