"""Polls: watched directories for callers who ask now and then, and hold no connection open."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web
from msgspec import Struct

from vmpool.api.bodies import Account, GuestPath
from vmpool.api.limits import check_path
from vmpool.api.route import answer
from vmpool.api.watchers import WATCHERS, Wanted
from vmpool.api.watches import Change, describe
from vmpool.model import DEFAULT_USER

if TYPE_CHECKING:
    from vmpool.api.bodies import Nothing
    from vmpool.api.route import Call


class MakeWatcher(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which directory, as whom, and whether those below it are watched as well."""

    path: GuestPath
    user: Account = DEFAULT_USER
    recursive: bool = False


class WatcherAnswer(Struct, frozen=True, kw_only=True):
    """A watcher: all that happens from now on is told to who asks it."""

    id: str


class TakeChanges(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An empty body: all that happened is taken."""


class ChangesAnswer(Struct, frozen=True, kw_only=True):
    """What happened since the last time, in that order."""

    changes: list[Change]


async def make(call: Call, body: MakeWatcher) -> web.Response:
    """Watch a directory from now on."""
    path = check_path(body.path)
    sandbox = await call.sandbox()
    call.host.audit(call.caller.owner, "file.watch", sandbox.id, {"path": path})
    wanted = Wanted(path=path, user=body.user, recursive=body.recursive)
    id = await call.request.app[WATCHERS].add(sandbox, wanted)
    return answer(WatcherAnswer(id=id), status=201)


async def take(call: Call, body: TakeChanges) -> web.Response:
    """Tell what a watcher has seen since the last time."""
    del body
    sandbox = await call.sandbox()
    watcher = call.request.app[WATCHERS].find(sandbox, call.request.match_info["watcher"])
    return answer(ChangesAnswer(changes=[describe(change) for change in await watcher.take()]))


async def remove(call: Call, query: Nothing) -> web.Response:
    """Watch a directory no longer."""
    del query
    sandbox = await call.sandbox()
    await call.request.app[WATCHERS].find(sandbox, call.request.match_info["watcher"]).close()
    return web.Response(status=204)
