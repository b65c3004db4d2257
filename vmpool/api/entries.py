"""Entries: what a file is and not what it holds: its mode, its owners, where a link points."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct

from vmpool.api import views
from vmpool.api.bodies import Account, FileMode, GuestPath
from vmpool.api.limits import PATH_BYTES, check_path
from vmpool.api.route import answer
from vmpool.errors import InvalidRequestError
from vmpool.model import DEFAULT_USER

if TYPE_CHECKING:
    from aiohttp import web

    from vmpool.api.route import Call

Owner = Annotated[
    str,
    Meta(
        description="Name in the guest, or a number in decimal",
        pattern="^[^\\u0000-\\u0020:/]{1,64}$",
    ),
]


class ChangeFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change of a file, links followed; what is left out stays. `mode` 420 is 0644."""

    path: GuestPath
    user: Account = DEFAULT_USER
    mode: FileMode | None = None
    owner: Owner | None = None
    group: Owner | None = None


class MakeLink(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A symbolic link to make, with its parents; `target` is written in it as it stands."""

    path: GuestPath
    target: Annotated[str, Meta(min_length=1, max_length=PATH_BYTES, pattern="^[^\\u0000]*$")]
    user: Account = DEFAULT_USER


async def change(call: Call, body: ChangeFile) -> web.Response:
    """Change a file's mode and owners."""
    path = check_path(body.path)
    sandbox = await call.sandbox()
    given = {"mode": body.mode, "owner": body.owner, "group": body.group}
    changed = {name: str(value) for name, value in given.items() if value is not None}
    call.host.audit(call.caller.owner, "file.change", sandbox.id, {"path": path} | changed)
    async with sandbox.attended() as agent:
        info = await agent.change(
            path, user=body.user, mode=body.mode, owner=body.owner, group=body.group
        )
    return answer(views.file(info))


async def link(call: Call, body: MakeLink) -> web.Response:
    """Make a symbolic link."""
    path = check_path(body.path)
    if len(body.target.encode()) > PATH_BYTES:
        raise InvalidRequestError(f"target is over {PATH_BYTES} bytes", code="invalid_path")
    sandbox = await call.sandbox()
    call.host.audit(
        call.caller.owner, "file.link", sandbox.id, {"path": path, "target": body.target}
    )
    async with sandbox.attended() as agent:
        info = await agent.link(path, body.target, user=body.user)
    return answer(views.file(info), status=201)
