"""Checkpoints: what a sandbox was, kept, gone back to and removed; and pauses, which are one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from vmpool.api import bodies, sandbox_bodies, views
from vmpool.api.route import Call, answer
from vmpool.lifecycle import Keep
from vmpool.vault import check_own

if TYPE_CHECKING:
    from vmpool.vault import Checkpoint


async def pause(call: Call, body: sandbox_bodies.Pause) -> web.Response:
    """Save a sandbox and end its machine."""
    keep = Keep(body.keep)
    sandbox = await call.host.pause(_id(call), owner=call.caller.owner, keep=keep)
    return answer(views.sandbox(sandbox))


async def resume(call: Call, body: sandbox_bodies.Resume) -> web.Response:
    """Go on with a paused sandbox."""
    if body.timeout is not None:
        call.limits.check_timeout(body.timeout, call.limits.published.sandbox_seconds)
    sandbox = await call.host.resume(
        _id(call), owner=call.caller.owner, timeout=body.timeout, keep=Keep(body.keep)
    )
    return answer(views.sandbox(sandbox))


async def rollback(call: Call, body: sandbox_bodies.Rollback) -> web.Response:
    """Put a sandbox back to what it was at a checkpoint."""
    sandbox = await call.host.rollback(
        _id(call), owner=call.caller.owner, checkpoint=body.checkpoint
    )
    return answer(views.sandbox(sandbox))


async def create(call: Call, body: sandbox_bodies.CreateCheckpoint) -> web.Response:
    """Keep what a sandbox is now."""
    check_own(body.name)
    kept = await call.host.checkpoint(
        _id(call),
        owner=call.caller.owner,
        name=body.name,
        if_taken=body.if_taken,
        keep=Keep(body.keep),
    )
    return answer(views.checkpoint(kept), status=201)


async def list_own(call: Call, query: sandbox_bodies.ListCheckpointsQuery) -> web.Response:
    """List the caller's checkpoints, newest first."""
    after = None if query.cursor is None else _parse_cursor(query.cursor)
    kept = await call.host.checkpoints(owner=call.caller.owner, sandbox=query.sandbox)
    found = sorted(
        (one for one in kept if after is None or _place(one) < after), key=_place, reverse=True
    )
    page = found[: query.limit]
    more = len(found) > len(page)
    return answer(
        sandbox_bodies.CheckpointList(
            checkpoints=[views.checkpoint(one) for one in page],
            next_cursor=_cursor(page[-1]) if more else None,
        )
    )


async def look(call: Call, _: bodies.Nothing) -> web.Response:
    """Return one checkpoint."""
    kept = call.host.find_checkpoint(_reference(call), owner=call.caller.owner)
    return answer(views.checkpoint(kept))


async def remove(call: Call, _: bodies.Nothing) -> web.Response:
    """Remove a checkpoint for good."""
    await call.host.remove_checkpoint(_reference(call), owner=call.caller.owner)
    return web.Response(status=204)


def _id(call: Call) -> str:
    return call.request.match_info["id"]


def _reference(call: Call) -> str:
    return call.request.match_info["checkpoint"]


def _place(checkpoint: Checkpoint) -> tuple[int, str]:
    """Return where a checkpoint stands in lists; stable while others come and go."""
    return checkpoint.created_ns, checkpoint.id


def _cursor(checkpoint: Checkpoint) -> str:
    return f"{checkpoint.created_ns}-{checkpoint.id}"


def _parse_cursor(cursor: str) -> tuple[int, str]:
    created_ns, _, checkpoint_id = cursor.partition("-")  # as the type of the query has it
    return int(created_ns), checkpoint_id
