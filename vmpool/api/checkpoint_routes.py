"""Checkpoint routes: what can be done to a sandbox's machine, as a table of its own."""

from __future__ import annotations

from typing import Final

from vmpool.api import bodies, checkpoints, forks, parcels, sandbox_bodies
from vmpool.api.auth import Access
from vmpool.api.idempotency import takes_once
from vmpool.api.route import Answer, Route, reads

JSON: Final = "application/json"

_TURN: Final = (404, 409, 410, 429, 502, 503, 507)

CHECKPOINT_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/pause",
        name="pause_sandbox",
        summary="Save a sandbox and end its machine",
        access=Access.OWNER,
        answers=(Answer(body=sandbox_bodies.SandboxAnswer, media=JSON),),
        problems=_TURN,
        **takes_once(sandbox_bodies.Pause, checkpoints.pause),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/resume",
        name="resume_sandbox",
        summary="Go on with a paused sandbox where it was, or on its disk",
        access=Access.OWNER,
        answers=(Answer(body=sandbox_bodies.SandboxAnswer, media=JSON),),
        problems=_TURN,
        **takes_once(sandbox_bodies.Resume, checkpoints.resume),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/checkpoints",
        name="create_checkpoint",
        summary="Keep what a running sandbox is now",
        access=Access.OWNER,
        answers=(Answer(status=201, body=sandbox_bodies.CheckpointAnswer, media=JSON),),
        problems=_TURN,
        **takes_once(sandbox_bodies.CreateCheckpoint, checkpoints.create),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/rollback",
        name="roll_sandbox_back",
        summary="Put a sandbox back to what it was at a checkpoint",
        access=Access.OWNER,
        answers=(Answer(body=sandbox_bodies.SandboxAnswer, media=JSON),),
        problems=_TURN,
        **takes_once(sandbox_bodies.Rollback, checkpoints.rollback),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/fork",
        name="fork_sandbox",
        summary="Make children of a running sandbox",
        access=Access.OWNER,
        answers=(Answer(status=201, body=sandbox_bodies.ForkAnswer, media=JSON),),
        problems=_TURN,
        **takes_once(sandbox_bodies.Fork, forks.fork),
    ),
    Route(
        method="GET",
        path="/v1/checkpoints",
        name="list_checkpoints",
        summary="List your checkpoints, newest first",
        access=Access.OWNER,
        answers=(Answer(body=sandbox_bodies.CheckpointList, media=JSON),),
        **reads(sandbox_bodies.ListCheckpointsQuery, checkpoints.list_own),
    ),
    Route(
        method="GET",
        path="/v1/checkpoints/{checkpoint}",
        name="look_at_checkpoint",
        summary="Return one checkpoint, by id or name",
        access=Access.OWNER,
        answers=(Answer(body=sandbox_bodies.CheckpointAnswer, media=JSON),),
        problems=(404,),
        **reads(bodies.Nothing, checkpoints.look),
    ),
    Route(
        method="DELETE",
        path="/v1/checkpoints/{checkpoint}",
        name="remove_checkpoint",
        summary="Remove a checkpoint; what was made of it lives on",
        access=Access.OWNER,
        answers=(Answer(status=204),),
        problems=(404, 409, 507),
        **reads(bodies.Nothing, checkpoints.remove),
    ),
    Route(
        method="GET",
        path="/v1/checkpoints/{checkpoint}/export",
        name="export_checkpoint",
        summary="Send a checkpoint as one compressed file",
        access=Access.OWNER,
        answers=(Answer(media=parcels.MEDIA),),
        problems=(404, 409),
        **reads(parcels.ExportQuery, parcels.send),
    ),
    Route(
        method="POST",
        path="/v1/checkpoints/import",
        name="import_checkpoint",
        summary="Keep a checkpoint that a host exported; its machine is run as it is",
        access=Access.OPERATOR,
        uploads=parcels.MEDIA,
        answers=(Answer(status=201, body=sandbox_bodies.CheckpointAnswer, media=JSON),),
        problems=(403, 404, 408, 409, 413, 415, 503, 507),
        **reads(parcels.ImportQuery, parcels.receive),
    ),
)
