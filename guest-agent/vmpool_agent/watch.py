"""Watch: what happens in a directory and below it, told for as long as somebody listens.

Runs in the child of a file operation, as the asking account. It decides which directories are
watched and what the kernel's events mean; `inotify` brings them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
from typing import TYPE_CHECKING, Any, NamedTuple

from vmpool_agent import inotify, spawn
from vmpool_agent.session import OperationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from vmpool_agent.system import Account

MAX_DIRECTORIES = 8192
MAX_PATH = 4096
_BATCH = 100
_BATCH_SIZE = 64 * 1024
"""Characters of paths in one message, 12 bytes of JSON each at worst: below its limit."""
_OTHER_HALF = 0.02
"""Seconds that the second half of a move may come after the first: another processor's event may
stand between them."""
_QUESTIONS = 4096
_WORDS = {
    inotify.DELETE: "removed",
    inotify.MODIFY: "modified",
    inotify.ATTRIB: "attributes",
}
_PLAIN = inotify.DELETE | inotify.MODIFY | inotify.ATTRIB
_LOSS = inotify.DELETE_SELF | inotify.MOVE_SELF
_GONE = _LOSS | inotify.UNMOUNT | inotify.IGNORED
_MOVES = inotify.MOVED_FROM | inotify.MOVED_TO
_WANTED = inotify.CREATE | _PLAIN | _MOVES | _LOSS | inotify.ONLYDIR | inotify.EXCL_UNLINK
_PASSED_OVER = frozenset(
    {errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR}
)
"""Why a directory below cannot be watched: closed to the account, or no longer there."""


class Change(NamedTuple):
    """Something that happened; paths are relative to the watched directory."""

    event: str
    path: str = ""
    directory: bool = False
    destination: str | None = None


class Tree:
    """The watched directories. Close it when done.

    Args:
        root: Absolute path of the directory that is watched.
        recursive: Whether those below it are, too.
        most: Directories at most.
    """

    def __init__(self, root: str, *, recursive: bool, most: int = MAX_DIRECTORIES) -> None:
        self._root = root
        self._recursive = recursive
        self._most = most
        self._kernel: inotify.Inotify | None = None
        self._top = -1
        self._paths: dict[int, str] = {}
        # Entries that a look into a new directory has found: the kernel may tell of them as well,
        # but not later than in the batch after.
        self._found: set[tuple[int, str]] = set()
        self._found_before: set[tuple[int, str]] = set()
        self._moved: set[int] = set()
        self.gone = False

    @property
    def fd(self) -> int:
        """A descriptor that is readable when something has happened; another after an overflow."""
        assert self._kernel is not None
        return self._kernel.fd

    def begin(self) -> None:
        """Watch the directories that are there now, instead of those before.

        Raises:
            OSError: The root is missing, no directory, or closed to the account.
            OperationError: `watch_limit`.
        """
        self.close()
        try:
            self._kernel = inotify.Inotify()
        except OSError as err:
            if err.errno == errno.EMFILE:
                raise _too_much("the guest's kernel grants this account no more watches") from err
            raise
        self._paths = {}
        self._found = set()
        for _ in self._descend(""):
            pass

    def close(self) -> None:
        """Watch nothing any more. *Idempotent.*"""
        if self._kernel is not None:
            self._kernel.close()

    def changes(self) -> Iterator[Change]:
        """Yield what happened until now; `gone` is true after the last change of all.

        Raises:
            OperationError: `watch_limit`.
        """
        events = self._queued()
        self._found_before, self._found = self._found, set()
        self._moved = set()
        arrivals = {event.cookie: event for event in events if event.mask & inotify.MOVED_TO}
        for event in events:
            if event.mask & inotify.OVERFLOW:
                yield from self._begin_anew()
                return
            if event.watch == self._top and event.mask & _GONE:
                self.gone = True
                yield Change("gone")
                return
            if event.mask & inotify.IGNORED:
                self._paths.pop(event.watch, None)
            elif event.name and event.watch in self._paths:
                path = _join(self._paths[event.watch], event.name)
                if len(path) <= MAX_PATH:
                    yield from self._changes_of(event, path, arrivals.get(event.cookie))

    def _queued(self) -> list[inotify.Event]:
        assert self._kernel is not None
        events = self._kernel.read()
        departures = sum(bool(event.mask & inotify.MOVED_FROM) for event in events)
        if departures > sum(bool(event.mask & inotify.MOVED_TO) for event in events):
            select.select([self.fd], [], [], _OTHER_HALF)
            events += self._kernel.read()
        return events

    def _begin_anew(self) -> Iterator[Change]:
        """Look again at all there is: directories may have come that nobody told of."""
        try:
            self.begin()
        except OSError:
            self.gone = True
            yield Change("gone")
            return
        yield Change("overflow")

    def _changes_of(
        self, event: inotify.Event, path: str, arrival: inotify.Event | None
    ) -> Iterator[Change]:
        directory = bool(event.mask & inotify.ISDIR)
        if event.mask & inotify.MOVED_FROM:
            yield self._move(path, directory, arrival)
        elif event.mask & (inotify.CREATE | inotify.MOVED_TO):
            entry = (event.watch, event.name)
            if entry in self._found_before or event.cookie in self._moved:
                self._found_before.discard(entry)
                return
            yield Change("created", path, directory)
            if directory and self._recursive:
                yield from self._find(path)
        else:
            yield Change(_WORDS[event.mask & _PLAIN], path, directory)

    def _move(self, path: str, directory: bool, arrival: inotify.Event | None) -> Change:
        """Follow a move; what leaves the tree is watched no longer."""
        destination = None
        if arrival is not None and arrival.watch in self._paths:
            self._moved.add(arrival.cookie)
            destination = _join(self._paths[arrival.watch], arrival.name)
        if directory:
            for watch, old in list(self._paths.items()):
                if old != path and not old.startswith(path + "/"):
                    continue
                if destination is None:
                    assert self._kernel is not None
                    self._kernel.remove(watch)
                    del self._paths[watch]
                else:
                    self._paths[watch] = destination + old[len(path) :]
        return Change("moved", path, directory, destination)

    def _find(self, path: str) -> Iterator[Change]:
        """Watch a directory that came, and yield what is in it already."""
        for watch, child, directory in self._descend(path):
            self._found.add((watch, os.path.basename(child)))  # noqa: PTH119
            yield Change("created", child, directory)
            if not directory and self._has_content(child):
                # Written before anybody looked, or while somebody did; twice is better than never.
                yield Change("modified", child)

    def _has_content(self, path: str) -> bool:
        try:
            entry = os.lstat(_join(self._root, path))
        except OSError:
            return False
        return stat.S_ISREG(entry.st_mode) and entry.st_size > 0

    def _descend(self, top: str) -> Iterator[tuple[int, str, bool]]:
        """Watch a directory and those below it; yield the watch, path and kind of their entries."""
        waiting = [top]
        while waiting:
            path = waiting.pop()
            watch = self._watch(path)
            if watch is None or not self._recursive:
                continue
            for entry in self._entries(path):
                child = _join(path, entry.name)
                directory = entry.is_dir(follow_symlinks=False)
                yield watch, child, directory
                if directory:
                    waiting.append(child)

    def _watch(self, path: str) -> int | None:
        """Watch a directory; return nothing for one that cannot be, or is at that path already."""
        assert self._kernel is not None
        if len(self._paths) >= self._most:
            raise _too_much(f"there are over {self._most} directories")
        try:
            below = inotify.DONT_FOLLOW if path else 0
            watch = self._kernel.add(_join(self._root, path), _WANTED | below)
        except OSError as err:
            if err.errno == errno.ENOSPC:
                raise _too_much("the guest's kernel grants no more watches") from err
            if path and err.errno in _PASSED_OVER:
                return None
            raise
        if self._paths.get(watch) in ("", path):
            return None
        self._paths[watch] = path
        if not path:
            self._top = watch
        return watch

    def _entries(self, path: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(_join(self._root, path)) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as err:
            if err.errno in _PASSED_OVER:
                return []
            raise
        return [entry for entry in found if len(path) + 1 + len(entry.name) <= MAX_PATH]


def follow(path: str, _account: Account, request: dict[str, Any]) -> dict[str, Any]:
    """Tell what happens in the directory at `path` until stdin ends or it is gone; from the child.

    Raises:
        OSError: It cannot be watched.
        OperationError: `watch_limit`.
    """
    tree = Tree(path, recursive=request.get("recursive") is True)
    with contextlib.closing(tree):
        tree.begin()
        spawn.tell({"type": "watching"})
        while not tree.gone:
            readable, _, _ = select.select([0, tree.fd], [], [])
            # Before the events are taken: all that came before the question goes before the answer.
            asked = os.read(0, _QUESTIONS) if 0 in readable else None
            _tell(tree.changes())
            if asked:
                spawn.tell({"type": "flushed", "count": len(asked)})
            elif asked is not None:
                break
    return {}


def _tell(changes: Iterable[Change]) -> None:
    """Report changes, many in one message; also those before a failure."""
    batch: list[dict[str, Any]] = []
    size = 0
    last = None
    try:
        for change in changes:
            if change == last:
                continue
            last = change
            batch.append(change._asdict())
            size += len(change.path) + len(change.destination or "")
            if len(batch) == _BATCH or size > _BATCH_SIZE:
                spawn.tell({"type": "changes", "changes": batch})
                batch = []
                size = 0
    finally:
        if batch:
            spawn.tell({"type": "changes", "changes": batch})


def _join(directory: str, name: str) -> str:
    return os.path.join(directory, name) if name else directory  # noqa: PTH118


def _too_much(why: str) -> OperationError:
    return OperationError("watch_limit", f"too much to watch: {why}")
