"""Watches: what happens in a guest's directory, as it happens.

The guest decides what is watched and in which words it is told; here that is checked and becomes
values.
"""

from __future__ import annotations

import collections
import contextlib
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from vmpool.agent import answers
from vmpool.agent.asking import patience
from vmpool.errors import ConflictError, GuestError
from vmpool_agent import wire

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from vmpool.agent.link import Link, LinkChannel

_QUESTION = b"?"
"""One byte, whatever it is, asks the guest to tell all that happened before it."""
MOST_BYTES = 32 << 20
"""What the changes may be that wait for a flush; a guest's queue and its channel hold less."""
_CHANGE_COST = 256


class ChangeKind(StrEnum):
    """What happened in a watched directory."""

    CREATED = "created"
    MODIFIED = "modified"
    REMOVED = "removed"
    MOVED = "moved"
    ATTRIBUTES = "attributes"
    OVERFLOW = "overflow"
    """Some changes were lost; whoever must know everything lists the directory anew."""
    GONE = "gone"
    """The directory itself is no more; nothing follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """Something that happened in a watched directory.

    Attributes:
        path: Relative to that directory; empty where it is about the directory itself.
        directory: Whether what changed is a directory.
        destination: Where something was moved to, relative likewise; `None` when it was moved out
            of sight.
    """

    kind: ChangeKind
    path: str
    directory: bool = False
    destination: str | None = None


class Watch:
    """A watched directory: an async iterator of its changes, for one reader.

    It ends after the directory is gone. Who reads slowly holds the guest back, whose kernel then
    drops events and says so: `ChangeKind.OVERFLOW`.
    """

    def __init__(self, channel: LinkChannel) -> None:
        self._channel = channel
        self._changes: collections.deque[FileChange] = collections.deque()
        self._unanswered = 0
        self._over = False

    def __aiter__(self) -> AsyncIterator[FileChange]:
        return self

    async def __anext__(self) -> FileChange:
        """Return the next change.

        Raises:
            GuestFileError: `watch_limit`: there is more to watch than the guest can.
            GuestError: The guest died or broke the protocol.
        """
        while not self._changes:
            if self._over:
                raise StopAsyncIteration
            await self._take()
        return self._changes.popleft()

    async def flush(self) -> list[FileChange]:
        """Return what happened until now and was not taken yet, for those who ask now and then.

        Raises:
            ConflictError: `watch_ended`: the directory was gone the last time.
            GuestError: As iterating; `guest_unresponsive`, or it does not come to an end.
        """
        if self._over and not self._changes:
            raise ConflictError("the watched directory is gone", code="watch_ended")
        async with patience():
            if not self._over:
                self._unanswered += 1
                await self._channel.send_data(wire.STDIN, _QUESTION)
            size_bytes = 0
            while self._unanswered > 0 and not self._over:
                size_bytes += await self._take()
                if size_bytes > MOST_BYTES:
                    raise GuestError("more changes than a guest holds", code="guest_protocol")
        changes = list(self._changes)
        self._changes.clear()
        return changes

    async def _take(self) -> int:
        """Take one message of the guest; return about how much memory it holds."""
        message = answers.expect(await self._channel.receive())
        match message.get("type"):
            case "changes":
                changes = _changes(message)
                self._changes += changes
                return sum(
                    _CHANGE_COST + len(one.path) + len(one.destination or "") for one in changes
                )
            case "flushed":
                count = answers.integer(message, "count")
                if not 0 < count <= self._unanswered:
                    raise _malformed("count")
                self._unanswered -= count
            case _:
                answers.done(message)
                self._over = True
        return 0


@contextlib.asynccontextmanager
async def watching(
    link: Link, path: str, *, user: str, recursive: bool
) -> AsyncGenerator[Watch, None]:
    """Watch a directory for the time of a block; all that happens in it is told.

    Raises:
        GuestFileError: The guest refused: `file_not_found`, `not_a_directory`, `watch_limit`, ….
        GuestError: The guest died, hung or broke the protocol.
    """
    request = {"op": "watch", "path": path, "user": user, "recursive": recursive}
    async with link.open() as channel:
        async with patience():
            await channel.send_message(request)
            first = answers.expect(await channel.receive())
        if first.get("type") != "watching":
            answers.done(first)
            raise GuestError("an end before the watch began", code="guest_protocol")
        yield Watch(channel)


def _changes(message: dict[str, Any]) -> list[FileChange]:
    """Return the changes of a message.

    Raises:
        GuestError: It is malformed.
    """
    told = message.get("changes")
    if not isinstance(told, list):
        raise _malformed("changes")
    return [_change(one) for one in told]


def _change(told: dict[str, Any]) -> FileChange:
    try:
        kind = ChangeKind(told["event"])
    except ValueError as err:
        raise _malformed("event") from err
    destination = told.get("destination")
    return FileChange(
        kind=kind,
        path=answers.path(told, "path"),
        directory=told["directory"],
        destination=None if destination is None else answers.path(told, "destination"),
    )


def _malformed(name: str) -> GuestError:
    return GuestError(f"answer with a wrong {name!r}", code="guest_protocol")
