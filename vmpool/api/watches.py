"""Watches: what happens in a guest's directory, line by line as it happens.

A reader that leaves ends the watch. One that is slow makes the guest drop changes, which is said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from aiohttp import web
from msgspec import Struct
from msgspec.structs import asdict

from vmpool.api import codec, outflow, problem, views
from vmpool.api.bodies import Account, GuestPath, ProblemLine
from vmpool.api.limits import check_path
from vmpool.errors import VmpoolError
from vmpool.model import DEFAULT_USER

if TYPE_CHECKING:
    from vmpool.agent.watches import FileChange
    from vmpool.api.route import Call

NDJSON = "application/x-ndjson"


class WatchQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which directory, as whom, and whether those below it are watched as well."""

    path: GuestPath
    user: Account = DEFAULT_USER
    recursive: bool = False


class Watching(Struct, frozen=True, kw_only=True, tag="watching", tag_field="type"):
    """The first line: all that happens from now on is told."""


class Change(Struct, frozen=True, kw_only=True):
    """Something that happened; paths are relative to the watched directory.

    `destination` is where something was moved to, null when that is out of sight. After `overflow`
    some changes were lost; after `gone`, which is the last line, there is no directory any more.
    """

    event: Literal["created", "modified", "removed", "moved", "attributes", "overflow", "gone"]
    path: str
    directory: bool
    destination: str | None


class ChangeLine(Change, frozen=True, kw_only=True, tag="change", tag_field="type"):
    """A change as a line of a stream."""


WatchLine = Watching | ChangeLine | ProblemLine


async def watch(call: Call, query: WatchQuery) -> web.StreamResponse:
    """Stream a directory's changes; what fails before the first line is an ordinary problem."""
    path = check_path(query.path)
    sandbox = await call.sandbox()
    call.host.audit(call.caller.owner, "file.watch", sandbox.id, {"path": path})
    response = web.StreamResponse(headers={"Content-Type": NDJSON})

    async def send(line: WatchLine) -> None:
        if not response.prepared:
            await response.prepare(call.request)
        await outflow.send(response.write(codec.encode(line) + b"\n"), call.limits)

    try:
        async with (
            sandbox.attended() as agent,
            agent.watch(path, user=query.user, recursive=query.recursive) as changes,
        ):
            await send(Watching())
            async for change in changes:
                await send(ChangeLine(**asdict(describe(change))))
    except VmpoolError as err:
        if not response.prepared or isinstance(err, outflow.StalledError):
            raise
        told = problem.describe(err, request_id=call.id, limits=call.limits)
        await send(ProblemLine(problem=told))
    await response.write_eof()
    return response


def describe(change: FileChange) -> Change:
    """Return a change as it is told."""
    destination = change.destination
    return Change(
        event=change.kind.value,
        path=views.printable(change.path),
        directory=change.directory,
        destination=None if destination is None else views.printable(destination),
    )
