"""Workshop: the builds of one server, those that wait, that are made, and that were.

It decides how many there are at one time. What becomes of them the journal has, and what they say
as they say it: a server that comes after goes on with what was promised, and says of what was being
made how it ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from aiohttp import web

from vmpool.api.e2b.templates.archives import Archives
from vmpool.api.e2b.templates.build import Build, Entry, State, build_id
from vmpool.api.e2b.templates.builder import BUILD, PASSING, Builder
from vmpool.cancellation import uninterrupted
from vmpool.errors import CapacityError, ConflictError, NotFoundError, VmpoolError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.api.e2b.templates.recipe import Recipe
    from vmpool.host import Host

log = logging.getLogger(__name__)

AT_ONCE: Final = 2
"""Builds that are made at one time, one of each tenant; the others wait."""

TENANT_MOST: Final = 8
"""Builds of one tenant that wait or are made."""

KNOWN_MOST: Final = 32
"""Builds of one tenant that are over and of which is told how they went."""

PROMISED_SECONDS: Final = 3600.0
"""How long one that was promised may take to be begun: its files are sent meanwhile."""


class Workshop:
    """The builds of a server; `open` before use, `close` before its host closes.

    Attributes:
        archives: The files that builds copy.
    """

    def __init__(self, host: Host) -> None:
        self.archives = Archives(host.settings.state / "uploads")
        self._host = host
        self._builds: dict[str, Build] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        # Whoever waits here is the only one of its tenant, and so they come in turns.
        self._own_turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._turns = asyncio.Semaphore(AT_ONCE)

    async def open(self) -> None:
        """Know of what was promised before, and end what builds of a killed server have left.

        Raises:
            StoreError, DiskFullError: The journal cannot be read.
        """
        await asyncio.to_thread(self.archives.sweep)
        host = self._host
        for row in await host.store.open_sandboxes():
            if BUILD in row.metadata:
                try:
                    await host.kill(row.id, owner=row.owner)
                except VmpoolError as err:
                    log.info("sandbox=%s of a build: %s", row.id, err)
        for kept in await host.store.checkpoints.all():
            if (kept.name or "").startswith(PASSING):
                try:
                    await host.remove_checkpoint(kept.id, owner=kept.owner)
                except VmpoolError as err:
                    log.info("checkpoint=%s of a build: %s", kept.id, err)
        became = {build_id(each.snapshot) for each in host.catalogue.statuses if each.snapshot}
        for was in await host.store.builds.all():
            build = self._builds[was.id] = Build.of(was)
            if build.state is State.BUILDING:
                await self.log_of(build)
                if build.id in became:
                    build.state = State.READY
                build.fail("the server was killed; build it again")  # unless it is over
                await self.note(build)

    async def note(self, build: Build) -> None:
        """Record how far a build is and what it has said, for servers that come after.

        Raises:
            StoreError, DiskFullError: The journal could not take it.
        """
        first, lines = build.noted, build.unnoted
        keep = TENANT_MOST + KNOWN_MOST
        await self._host.store.builds.save(build.row, keep=keep, lines=lines, first=first)
        build.noted = max(build.noted, first + len(lines))

    async def log_of(self, build: Build) -> list[Entry]:
        """Return what a build has said; whoever is told it will be told it by the next server.

        Raises:
            StoreError: It is an earlier server's, and the journal cannot be read.
        """
        if not build.remembered:
            build.remember(await self._host.store.builds.lines(build.id))
        entries = build.entries.copy()
        if build.noted < len(entries):
            await self._try_to_note(build)
        return entries

    async def close(self) -> None:
        """End all builds, and wait for them. *Idempotent.*"""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def promise(self, *, owner: str, name: str, tags: tuple[str, ...]) -> Build:
        """Return a new build that waits to be begun.

        Raises:
            CapacityError: `builds_busy`; its tenant has as many as it may.
        """
        self._forget()
        under_way = [each for each in self._builds.values() if not each.over]
        if sum(each.owner == owner for each in under_way) >= TENANT_MOST:
            raise CapacityError(
                f"{TENANT_MOST} builds wait or are being made already",
                code="builds_busy",
                remedy="wait for one of them",
            )
        build = Build(id=str(uuid4()), owner=owner, name=name, tags=tags)
        self._builds[build.id] = build
        return build

    def find(self, id: str, *, owner: str) -> Build:
        """Return a build of a tenant.

        Raises:
            NotFoundError: `build_not_found`.
        """
        build = self._builds.get(id)
        if build is None or build.owner != owner:
            raise NotFoundError(
                f"there is no build {id[:64]!r}",
                code="build_not_found",
                remedy="build it again: those of long ago are forgotten",
            )
        return build

    def begin(self, build: Build, recipe: Recipe) -> None:
        """Have a build made, once its turn comes.

        Raises:
            ConflictError: `build_begun`.
        """
        if build.begun:
            raise ConflictError(f"build {build.id!r} was begun before", code="build_begun")
        build.begun = True
        task = asyncio.get_running_loop().create_task(
            self._make(build, recipe), name=f"build {build.id}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _make(self, build: Build, recipe: Recipe) -> None:
        try:
            async with self._own_turns[build.owner], self._turns, self._recorded(build):
                await Builder(self._host, build, recipe, self.archives).run()
        finally:
            build.fail("the server was stopped; build it again")  # unless it is over
            await uninterrupted(self._try_to_note(build))
        log.info("build=%s owner=%s is %s", build.id, build.owner, build.state)

    @contextlib.asynccontextmanager
    async def _recorded(self, build: Build) -> AsyncIterator[None]:
        """Record what a build says as it says it, as long as the block."""
        task = asyncio.get_running_loop().create_task(
            self._record(build), name=f"log of build {build.id}"
        )
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _record(self, build: Build) -> None:
        # A log has so many lines and no more. Those that come during a write go with the next.
        while await build.news.wait():
            build.news.clear()
            await self._try_to_note(build)

    async def _try_to_note(self, build: Build) -> None:
        """Record how far a build is, which goes on without where that fails."""
        try:
            await self.note(build)
        except VmpoolError as err:  # a server that comes after will say that it was killed
            log.error("build=%s is %s, which is not recorded: %s", build.id, build.state, err)

    def _forget(self) -> None:
        """Forget each tenant's oldest that are over, and end those that nobody begins."""
        now = time.monotonic()
        over: Counter[str] = Counter()
        for build in reversed(list(self._builds.values())):
            if not build.begun and now - build.made_at > PROMISED_SECONDS:
                build.fail("nobody began it")
            over[build.owner] += build.over
            if build.over and over[build.owner] > KNOWN_MOST:
                del self._builds[build.id]


WORKSHOP: Final = web.AppKey("workshop", Workshop)


def put_in(app: web.Application, host: Host) -> None:
    """Give an application a workshop, for as long as it serves."""
    app[WORKSHOP] = Workshop(host)
    app.on_startup.append(_open)
    app.on_shutdown.append(_close)


async def _open(app: web.Application) -> None:
    await app[WORKSHOP].open()


async def _close(app: web.Application) -> None:
    await app[WORKSHOP].close()
