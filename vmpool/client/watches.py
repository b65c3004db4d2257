"""Watches: what happens in a directory of a sandbox, as the server tells it."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from vmpool.client.problem import error_of
from vmpool.errors import InfrastructureError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """Something that happened in a watched directory.

    Attributes:
        event: `created`, `modified`, `removed`, `moved`, `attributes`; `overflow` when some changes
            were lost, `gone` when there is no directory any more.
        path: Relative to that directory; empty where it is about the directory itself.
        directory: Whether what changed is a directory.
        destination: Where something was moved to, relative likewise; `None` when that is out of
            sight.
    """

    event: str
    path: str
    directory: bool
    destination: str | None


async def read_changes(lines: AsyncGenerator[bytes]) -> AsyncGenerator[FileChange]:
    """Yield the changes that lines tell of, up to the directory's end.

    Raises:
        VmpoolError: The server broke it off, and this is why.
        InfrastructureError: `server_lost`, or `not_vmpool` when it is no watch at all.
    """
    last = None
    async with aclosing(lines):
        async for line in lines:
            change = _read(line)
            if change is not None:
                last = change.event
                yield change
    if last != "gone":
        raise InfrastructureError(
            "lost the server: its stream broke off before the watch's end", code="server_lost"
        )


def _read(line: bytes) -> FileChange | None:
    """Return the change of a line; `None` for one that tells of none."""
    try:
        told = msgspec.json.decode(line)
        if told["type"] == "change":
            return msgspec.convert(told, FileChange)
        if told["type"] != "problem":
            return None
        error = error_of(told["problem"])
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError) as err:
        raise InfrastructureError("the server's stream broke its form", code="not_vmpool") from err
    raise error
