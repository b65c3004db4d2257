"""Watchers: directories that are watched for callers who ask now and then what happened.

Each holds a watch in its guest for as long as its machine lives, whoever is connected. What nobody
asks for stays in the guest, whose kernel drops it in the end and says so.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web

from vmpool.errors import CapacityError, ConflictError, NotFoundError, VmpoolError
from vmpool.model import new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.agent.watches import FileChange, Watch
    from vmpool.sandbox import Sandbox

MOST: Final = 64
"""Watchers of one sandbox: each takes a channel to its agent, and a process in the guest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a watcher is for.

    Attributes:
        user: The account whose rights it has.
        described: Whether its caller wants to be told what is at the paths of changes.
    """

    path: str
    user: str
    recursive: bool
    described: bool = False


class Watchers:
    """The watchers of all sandboxes of a server, each a task of its own."""

    def __init__(self) -> None:
        self._of: dict[str, dict[str, Watcher]] = {}

    async def add(self, sandbox: Sandbox, wanted: Wanted) -> str:
        """Watch a directory from now on; return the watcher's id. *Not idempotent.*

        Raises:
            CapacityError: `too_many_watchers`.
            GuestFileError: The guest refused: `file_not_found`, `not_a_directory`, ….
            VmpoolError: As `Sandbox.lent`.
        """
        watchers = self._of.setdefault(sandbox.id, {})
        if len(watchers) >= MOST:
            raise CapacityError(
                f"sandbox {sandbox.id!r} has {MOST} watchers already",
                code="too_many_watchers",
                remedy="remove some",
            )
        id, watcher = new_id("watcher"), Watcher(sandbox, wanted)
        watchers[id] = watcher
        task = watcher.start()
        task.add_done_callback(lambda _: self._forget(sandbox.id, id))
        try:
            await watcher.begun()
        except BaseException:
            await watcher.close()
            raise
        return id

    def find(self, sandbox: Sandbox, id: str) -> Watcher:
        """Return a watcher of a sandbox.

        Raises:
            NotFoundError: `watcher_not_found`; also when its machine is no more: those of a sandbox
                that was paused are gone.
        """
        watcher = self._of.get(sandbox.id, {}).get(id)
        if watcher is None:
            raise NotFoundError(
                f"sandbox {sandbox.id!r} has no watcher {id[:64]!r}",
                code="watcher_not_found",
                remedy="watch again; a sandbox that is paused loses its watchers",
            )
        return watcher

    async def close(self) -> None:
        """Watch nothing any more."""
        watchers = [watcher for those in self._of.values() for watcher in those.values()]
        await asyncio.gather(*(watcher.close() for watcher in watchers))

    def _forget(self, sandbox_id: str, id: str) -> None:
        watchers = self._of[sandbox_id]
        del watchers[id]
        if not watchers:
            del self._of[sandbox_id]


class Watcher:
    """One watched directory, held by a task that ends with the machine, or by `close`."""

    def __init__(self, sandbox: Sandbox, wanted: Wanted) -> None:
        self.wanted = wanted
        self._sandbox = sandbox
        self._begun: asyncio.Future[Watch] = asyncio.get_running_loop().create_future()
        self._taking = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin to watch; `begun` says what came of it."""
        self._task = asyncio.create_task(self._hold())
        return self._task

    async def begun(self) -> None:
        """Return once all that happens is seen.

        Raises:
            VmpoolError: It cannot be.
        """
        await asyncio.shield(self._begun)

    async def take(self) -> list[FileChange]:
        """Return what happened since the last time; nothing any more once the directory is gone.

        Raises:
            VmpoolError: As `Sandbox.lent`.
        """
        watch = await asyncio.shield(self._begun)
        async with self._taking, self._sandbox.attended():
            try:
                return await watch.flush()
            except ConflictError as err:
                if err.error_code != "watch_ended":
                    raise
                return []

    async def close(self) -> None:
        """Give the watch up. *Idempotent.*"""
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _hold(self) -> None:
        wanted = self.wanted
        try:
            async with (
                self._sandbox.lent() as agent,
                agent.watch(wanted.path, user=wanted.user, recursive=wanted.recursive) as watch,
            ):
                self._begun.set_result(watch)
                await agent.wait_closed()
        except VmpoolError as err:
            if not self._begun.done():
                self._begun.set_exception(err)
                self._begun.exception()  # whoever asked may be gone
        finally:
            self._begun.cancel()


WATCHERS: Final = web.AppKey("watchers", Watchers)


async def keep(app: web.Application) -> AsyncIterator[None]:
    """Keep an application's watchers while it serves; for `web.Application.cleanup_ctx`."""
    app[WATCHERS] = Watchers()
    try:
        yield
    finally:
        await app[WATCHERS].close()
