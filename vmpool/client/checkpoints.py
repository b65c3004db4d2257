"""Checkpoints: what sandboxes were, kept on a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmpool.client.connection import Connection, Repeat, Request, path_of
from vmpool.client.values import CheckpointInfo, CheckpointPage, read

if TYPE_CHECKING:
    from vmpool.client.sandbox import AsyncSandbox

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

    async def _ask(self, method: str, path: str) -> bytes:
        request = Request(method=method, path=path)
        return await self._connection.call(request, repeat=Repeat.WHEN_LOST)


def reference_of(checkpoint: CheckpointInfo | str) -> str:
    """Return how a request names a checkpoint."""
    return checkpoint if isinstance(checkpoint, str) else checkpoint.id
