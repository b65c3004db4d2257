"""File messages: what the RPC service 'filesystem.Filesystem' is told and tells, as values."""

from __future__ import annotations

import stat
from posixpath import basename
from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from vmpool.agent.watches import ChangeKind
from vmpool.api import views
from vmpool.api.limits import PATH_BYTES
from vmpool.errors import InvalidRequestError
from vmpool.model import FileKind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vmpool.agent.watches import FileChange
    from vmpool.model import FileInfo

EventType = Literal[
    "EVENT_TYPE_CREATE",
    "EVENT_TYPE_WRITE",
    "EVENT_TYPE_REMOVE",
    "EVENT_TYPE_RENAME",
    "EVENT_TYPE_CHMOD",
]

ITSELF: Final = "."
"""How an event calls the watched directory."""

DESCRIBED: Final = frozenset({"EVENT_TYPE_CREATE", "EVENT_TYPE_WRITE", "EVENT_TYPE_CHMOD"})
"""Events after which there is something to describe."""

_TYPES: Final[Mapping[FileKind, str]] = {
    FileKind.FILE: "FILE_TYPE_FILE",
    FileKind.DIRECTORY: "FILE_TYPE_DIRECTORY",
    FileKind.SYMLINK: "FILE_TYPE_SYMLINK",
    FileKind.OTHER: "FILE_TYPE_UNSPECIFIED",
}
_FORMATS: Final[Mapping[FileKind, int]] = {FileKind.DIRECTORY: stat.S_IFDIR}
_WORDS: Final[Mapping[ChangeKind, EventType]] = {
    ChangeKind.CREATED: "EVENT_TYPE_CREATE",
    ChangeKind.MODIFIED: "EVENT_TYPE_WRITE",
    ChangeKind.REMOVED: "EVENT_TYPE_REMOVE",
    ChangeKind.ATTRIBUTES: "EVENT_TYPE_CHMOD",
}


class PathRequest(Struct, frozen=True, kw_only=True):
    """`Stat`, `MakeDir` and `Remove`: absolute, below `~`, or relative to the account's home."""

    path: str = ""


class ListDirRequest(Struct, frozen=True, kw_only=True):
    """`ListDir`; a depth of 0 is one of 1."""

    path: str = ""
    depth: Annotated[int, Meta(ge=0, lt=2**32)] = 0


class MoveRequest(Struct, frozen=True, kw_only=True):
    """`Move`."""

    source: str = ""
    destination: str = ""


class WatchRequest(Struct, frozen=True, kw_only=True, rename="camel"):
    """`WatchDir` and `CreateWatcher`."""

    path: str = ""
    recursive: bool = False
    include_entry: bool = False


class WatcherRequest(Struct, frozen=True, kw_only=True, rename="camel"):
    """`GetWatcherEvents` and `RemoveWatcher`."""

    watcher_id: str = ""


class Entry(Struct, frozen=True, kw_only=True, rename="camel"):
    """`EntryInfo`; of a link, type and mode are those of what it leads to."""

    name: str
    type: str
    path: str
    size: str
    mode: int
    permissions: str
    owner: str
    group: str
    modified_time: str
    symlink_target: str | UnsetType = UNSET
    metadata: dict[str, str] = {}
    is_symlink: bool = False


class EntryAnswer(Struct, frozen=True, kw_only=True):
    """What `Stat`, `MakeDir` and `Move` answer."""

    entry: Entry


class EntriesAnswer(Struct, frozen=True, kw_only=True):
    """What `ListDir` answers."""

    entries: list[Entry]


class Event(Struct, frozen=True, kw_only=True):
    """Something that happened; its name is relative to the watched directory."""

    name: str
    type: EventType
    entry: Entry | UnsetType = UNSET


class Watched(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One message of `WatchDir`; one member is set."""

    start: dict[str, str] | UnsetType = UNSET
    filesystem: Event | UnsetType = UNSET
    keepalive: dict[str, str] | UnsetType = UNSET


class WatcherAnswer(Struct, frozen=True, kw_only=True, rename="camel"):
    """What `CreateWatcher` answers."""

    watcher_id: str


class EventsAnswer(Struct, frozen=True, kw_only=True):
    """What `GetWatcherEvents` answers."""

    events: list[Event]


def check_path(path: str) -> str:
    """Return a path that a guest may be asked for; whose home it is relative to, the guest knows.

    Raises:
        InvalidRequestError: `invalid_path`.
    """
    if "\0" in path:
        raise InvalidRequestError(f"path {path[:200]!r} holds a NUL", code="invalid_path")
    if len(path.encode("utf-8", "surrogateescape")) > PATH_BYTES:
        raise InvalidRequestError(
            f"path {path[:200]!r} is over {PATH_BYTES} bytes", code="invalid_path"
        )
    return path


def entry(info: FileInfo) -> Entry:
    """Return an entry of a guest's file system."""
    is_symlink = info.kind is FileKind.SYMLINK
    kind, mode = info.kind, info.mode
    if info.resolved is not None:
        kind, mode = info.resolved.kind, info.resolved.mode
    elif is_symlink:
        kind = FileKind.OTHER
    target = info.target if info.resolved is None else info.resolved.path
    return Entry(
        name=views.printable(basename(info.path)) or "/",
        type=_TYPES[kind],
        path=views.printable(info.path),
        size=str(max(info.size_bytes, 0)),
        mode=mode & 0o777,
        permissions=stat.filemode(_FORMATS.get(kind, stat.S_IFREG) | mode),
        owner=views.printable(info.owner),
        group=views.printable(info.group),
        modified_time=views.rfc3339(info.modified_ns),
        symlink_target=views.printable(target) if is_symlink and target is not None else UNSET,
        metadata=info.metadata,
        is_symlink=is_symlink,
    )


def events(change: FileChange) -> list[tuple[EventType, str]]:
    """Return type and name of the events that a change is; those that were lost, it is not.

    A move within what is watched is two: these clients are told of both ends by themselves.
    """
    path = change.path
    match change.kind:
        case ChangeKind.MOVED:
            left: list[tuple[EventType, str]] = [("EVENT_TYPE_RENAME", path)]
            if change.destination is not None:
                left.append(("EVENT_TYPE_CREATE", change.destination))
            return left
        case ChangeKind.GONE:
            return [("EVENT_TYPE_REMOVE", ITSELF)]
        case ChangeKind.OVERFLOW:
            return []
        case _:
            return [(_WORDS[change.kind], path)]
