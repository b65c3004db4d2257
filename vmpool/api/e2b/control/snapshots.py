"""Snapshots: what is kept of sandboxes, as E2B's clients ask for it; they are checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmpool.api.e2b import naming
from vmpool.api.e2b.control import bodies, sandboxes, views
from vmpool.api.e2b.operation import answer
from vmpool.store import IfTaken
from vmpool.vault import STEP, check_own

if TYPE_CHECKING:
    from aiohttp import web

    from vmpool.api.route import Call
    from vmpool.vault import Checkpoint


async def create(call: Call, body: bodies.NewSnapshot) -> web.Response:
    """Keep what a sandbox is now; it runs on. A name that is taken means this one from then on."""
    name = None if body.name is None else naming.bare(body.name)
    check_own(name)
    id, owner = call.request.match_info["id"], call.caller.owner
    await call.host.awake(id, owner=owner)
    kept = await call.host.checkpoint(
        id, owner=owner, name=name, if_taken=IfTaken.MOVE, keep=sandboxes.keep_of(body.memory)
    )
    return answer(views.snapshot(kept), status=201)


async def list_own(call: Call, query: bodies.SnapshotsQuery) -> web.Response:
    """List what the caller has kept, the newest first; not what builds keep of their steps."""
    name = None if query.name is None else naming.bare(query.name)
    kept = await call.host.checkpoints(owner=call.caller.owner, sandbox=query.sandbox)
    own = [each for each in kept if not (each.name or "").startswith(STEP)]
    found = [each for each in own if name is None or _is_called(each, name)]
    if query.next_token is not None:
        created, _, id = query.next_token.partition("-")
        found = [each for each in found if (each.created_ns, each.id) < (int(created), id)]
    page = found[: query.limit]
    headers = {}
    if len(found) > len(page):
        headers["x-next-token"] = f"{page[-1].created_ns}-{page[-1].id}"
    return answer([views.snapshot(each) for each in page], headers=headers)


def _is_called(kept: Checkpoint, name: str) -> bool:
    """Whether a name is meant: one without a tag means all of its tags."""
    if kept.name is None:
        return False
    return name in {kept.name, kept.name.partition(":")[0]}
