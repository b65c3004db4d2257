"""Filesystem: the RPC service 'filesystem.Filesystem', as E2B's clients use it.

Whose home a path is relative to, and what the account may touch, is for the guest to say.
"""

from __future__ import annotations

from posixpath import join
from typing import TYPE_CHECKING, Final

from msgspec import UNSET

from vmpool.agent.watches import ChangeKind
from vmpool.api import views
from vmpool.api.e2b import connect
from vmpool.api.e2b import file_messages as messages
from vmpool.api.e2b.account import account_of
from vmpool.api.e2b.connect import NOTHING, Nothing
from vmpool.api.e2b.file_messages import check_path
from vmpool.api.watchers import WATCHERS, Wanted
from vmpool.errors import GuestFileError, InvalidRequestError, TaskError
from vmpool.model import FileKind

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from vmpool.agent import Agent
    from vmpool.agent.watches import FileChange
    from vmpool.api.e2b.visit import Table, Visit
    from vmpool.model import FileInfo

_DEEPEST: Final = 512
"""Levels of a listing: half of what the agent's own recursion bears, and more than paths have."""

_MOST_ENTRIES: Final = 256
"""Files that one poll of a watcher describes: each takes a question to the guest."""


async def stat(visit: Visit, body: messages.PathRequest) -> messages.EntryAnswer:
    """Tell what a path is."""
    path = check_path(body.path)
    async with visit.sandbox.attended() as agent:
        info = await agent.stat(path, user=account_of(visit))
    return _answer(info)


async def list_directory(visit: Visit, body: messages.ListDirRequest) -> messages.EntriesAnswer:
    """Tell what a directory holds."""
    path, depth = check_path(body.path), min(body.depth or 1, _DEEPEST)
    async with visit.sandbox.attended() as agent:
        listed = await agent.list_directory(path, user=account_of(visit), depth=depth)
    return messages.EntriesAnswer(entries=[messages.entry(info) for info in listed])


async def make_directory(visit: Visit, body: messages.PathRequest) -> messages.EntryAnswer:
    """Make a directory with its parents."""
    path, user = check_path(body.path), account_of(visit)
    _audit(visit, "file.write", path=path)
    async with visit.sandbox.attended() as agent:
        try:
            info = await agent.make_directory(path, user=user)
        except GuestFileError as err:
            if err.error_code == "file_exists" and not await _is_directory(agent, path, user):
                raise InvalidRequestError(
                    f"path {path!r} is there, and is no directory", code="not_a_directory"
                ) from err
            raise
    return _answer(info)


async def move(visit: Visit, body: messages.MoveRequest) -> messages.EntryAnswer:
    """Rename, over what is there; makes the destination's parents."""
    source, destination = check_path(body.source), check_path(body.destination)
    _audit(visit, "file.move", path=source, destination=destination)
    async with visit.sandbox.attended() as agent:
        info = await agent.move(source, destination, user=account_of(visit))
    return _answer(info)


async def remove(visit: Visit, body: messages.PathRequest) -> Nothing:
    """Remove a file, or a directory with all it holds; what is not there need not be removed."""
    path = check_path(body.path)
    _audit(visit, "file.remove", path=path)
    async with visit.sandbox.attended() as agent:
        try:
            await agent.remove(path, user=account_of(visit))
        except GuestFileError as err:
            if err.error_code != "file_not_found":
                raise
    return NOTHING


async def watch(
    visit: Visit, body: messages.WatchRequest
) -> AsyncGenerator[messages.Watched, None]:
    """Tell what happens in a directory, as it happens, until that is gone."""
    path, user = check_path(body.path), account_of(visit)
    _audit(visit, "file.watch", path=path)
    async with (
        visit.sandbox.attended() as agent,
        agent.watch(path, user=user, recursive=body.recursive) as changes,
    ):
        entries = _Entries(agent, path, user) if body.include_entry else None
        yield messages.Watched(start={})
        async for change in changes:
            for event in await _told([change], entries):
                yield messages.Watched(filesystem=event)


async def create_watcher(visit: Visit, body: messages.WatchRequest) -> messages.WatcherAnswer:
    """Watch a directory for a client that asks now and then."""
    path, user = check_path(body.path), account_of(visit)
    _audit(visit, "file.watch", path=path)
    wanted = Wanted(path=path, user=user, recursive=body.recursive, described=body.include_entry)
    id = await visit.request.app[WATCHERS].add(visit.sandbox, wanted)
    return messages.WatcherAnswer(watcher_id=id)


async def take_events(visit: Visit, body: messages.WatcherRequest) -> messages.EventsAnswer:
    """Tell what a watcher has seen since the last time."""
    watcher = visit.request.app[WATCHERS].find(visit.sandbox, body.watcher_id)
    changes, wanted = await watcher.take(), watcher.wanted
    async with visit.sandbox.attended() as agent:
        entries = _Entries(agent, wanted.path, wanted.user) if wanted.described else None
        return messages.EventsAnswer(events=await _told(changes, entries))


async def remove_watcher(visit: Visit, body: messages.WatcherRequest) -> Nothing:
    """Watch a directory no longer."""
    await visit.request.app[WATCHERS].find(visit.sandbox, body.watcher_id).close()
    return NOTHING


_SERVICE: Final = "/filesystem.Filesystem/"

ENDPOINTS: Final[Table] = {
    ("POST", f"{_SERVICE}Stat"): connect.unary(messages.PathRequest, stat),
    ("POST", f"{_SERVICE}ListDir"): connect.unary(messages.ListDirRequest, list_directory),
    ("POST", f"{_SERVICE}MakeDir"): connect.unary(messages.PathRequest, make_directory),
    ("POST", f"{_SERVICE}Move"): connect.unary(messages.MoveRequest, move),
    ("POST", f"{_SERVICE}Remove"): connect.unary(messages.PathRequest, remove),
    ("POST", f"{_SERVICE}WatchDir"): connect.server_stream(
        messages.WatchRequest, watch, keepalive=messages.Watched(keepalive={})
    ),
    ("POST", f"{_SERVICE}CreateWatcher"): connect.unary(messages.WatchRequest, create_watcher),
    ("POST", f"{_SERVICE}GetWatcherEvents"): connect.unary(messages.WatcherRequest, take_events),
    ("POST", f"{_SERVICE}RemoveWatcher"): connect.unary(messages.WatcherRequest, remove_watcher),
}


class _Entries:
    """What is at the paths below a watched directory, asked for once a batch of events."""

    def __init__(self, agent: Agent, root: str, user: str) -> None:
        self._agent = agent
        self._root = root
        self._user = user

    async def of(self, names: Iterable[str]) -> dict[str, messages.Entry]:
        """Return what is there now; what is gone, or closed to the account, is left out."""
        found: dict[str, messages.Entry] = {}
        for name in list(dict.fromkeys(names))[:_MOST_ENTRIES]:
            try:
                info = await self._agent.stat(join(self._root, name), user=self._user)
            except (GuestFileError, InvalidRequestError):
                continue
            found[name] = messages.entry(info)
        return found


async def _told(changes: list[FileChange], entries: _Entries | None) -> list[messages.Event]:
    """Return the events that changes are.

    Raises:
        TaskError: `watch_overflow`; there were more than could be kept.
    """
    if any(change.kind is ChangeKind.OVERFLOW for change in changes):
        raise TaskError(
            "more happened than the guest could keep, and some of it is lost",
            code="watch_overflow",
            remedy="list the directory, and watch it anew",
        )
    events = [event for change in changes for event in messages.events(change)]
    found: dict[str, messages.Entry] = {}
    if entries is not None:
        found = await entries.of(name for kind, name in events if kind in messages.DESCRIBED)
    return [
        messages.Event(
            name=views.printable(name),
            type=kind,
            entry=found.get(name, UNSET) if kind in messages.DESCRIBED else UNSET,
        )
        for kind, name in events
    ]


async def _is_directory(agent: Agent, path: str, user: str) -> bool:
    info = await agent.stat(path, user=user)
    kind = info.kind if info.resolved is None else info.resolved.kind
    return kind is FileKind.DIRECTORY


def _answer(info: FileInfo) -> messages.EntryAnswer:
    return messages.EntryAnswer(entry=messages.entry(info))


def _audit(visit: Visit, action: str, **detail: str) -> None:
    visit.host.audit(visit.sandbox.owner, action, visit.sandbox.id, detail)
