"""Routes: the whole native interface, as one table."""

from __future__ import annotations

from typing import Final

from vmpool.api import (
    audit,
    bodies,
    execs,
    sandbox_bodies,
    sandboxes,
    sockets,
    status,
    templates,
    usage,
)
from vmpool.api.auth import Access
from vmpool.api.checkpoint_routes import CHECKPOINT_ROUTES
from vmpool.api.context_routes import CONTEXT_ROUTES
from vmpool.api.file_routes import FILE_ROUTES
from vmpool.api.idempotency import takes_once
from vmpool.api.network_routes import NETWORK_ROUTES
from vmpool.api.port_routes import PORT_ROUTES
from vmpool.api.process_routes import PROCESS_ROUTES
from vmpool.api.route import Answer, Route, reads, takes

JSON: Final = "application/json"

_SANDBOX: Final = (404, 410)
_WOKEN: Final = (*_SANDBOX, 409, 429, 503, 507)
_GUEST: Final = (*_WOKEN, 502)
_CAPACITY: Final = (404, 409, 429, 503, 507)

ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="POST",
        path="/v1/run",
        name="run",
        summary="Run once in a virtual machine of its own",
        access=Access.OWNER,
        answers=(Answer(body=bodies.RunAnswer, media=JSON),),
        problems=(*_CAPACITY, 403, 502),
        **takes_once(bodies.Run, sandboxes.run),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes",
        name="create_sandbox",
        summary="Make a sandbox",
        access=Access.OWNER,
        answers=(Answer(status=201, body=sandbox_bodies.SandboxAnswer, media=JSON),),
        problems=(*_CAPACITY, 502),
        **takes_once(sandbox_bodies.CreateSandbox, sandboxes.create),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes",
        name="list_sandboxes",
        summary="List your sandboxes, newest first",
        access=Access.OWNER,
        answers=(Answer(body=sandbox_bodies.SandboxList, media=JSON),),
        **reads(sandbox_bodies.ListSandboxesQuery, sandboxes.list_own),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes/{id}",
        name="look_at_sandbox",
        summary="Return one sandbox",
        access=Access.OWNER,
        answers=(Answer(body=sandbox_bodies.SandboxAnswer, media=JSON),),
        problems=_SANDBOX,
        **reads(bodies.Nothing, sandboxes.look),
    ),
    Route(
        method="DELETE",
        path="/v1/sandboxes/{id}",
        name="kill_sandbox",
        summary="End a sandbox; its machine is gone when the answer comes",
        access=Access.OWNER,
        answers=(Answer(status=204),),
        problems=_SANDBOX,
        **reads(bodies.Nothing, sandboxes.kill),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/timeout",
        name="set_sandbox_timeout",
        summary="Set a sandbox's deadline, counted from now",
        access=Access.OWNER,
        answers=(Answer(body=sandbox_bodies.SandboxAnswer, media=JSON),),
        problems=_SANDBOX,
        **takes(sandbox_bodies.SetTimeout, sandboxes.set_timeout),
    ),
    *CHECKPOINT_ROUTES,
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/exec",
        name="execute",
        summary="Run something in a sandbox and stream its lines",
        access=Access.SANDBOX,
        answers=(Answer(body=bodies.ExecLine, media=execs.NDJSON),),
        problems=(*_GUEST, 403),
        **takes(bodies.Exec, execs.execute),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes/{id}/exec",
        name="execute_interactively",
        summary="Run something in a sandbox over a WebSocket, with stdin",
        access=Access.SANDBOX,
        answers=(Answer(status=101),),
        problems=(*_GUEST, 426),
        **reads(bodies.Nothing, sockets.execute),
    ),
    *PROCESS_ROUTES,
    *CONTEXT_ROUTES,
    *FILE_ROUTES,
    *PORT_ROUTES,
    *NETWORK_ROUTES,
    Route(
        method="GET",
        path="/v1/templates",
        name="list_templates",
        summary="List the templates that are there for you, with their pools",
        access=Access.TOKEN,
        answers=(Answer(body=bodies.TemplateList, media=JSON),),
        **reads(bodies.Nothing, templates.list_all),
    ),
    Route(
        method="POST",
        path="/v1/templates",
        name="create_template",
        summary="Make a template of an image or a checkpoint; it is ready when the answer comes",
        access=Access.TEMPLATES,
        answers=(Answer(status=201, body=bodies.TemplateAnswer, media=JSON),),
        problems=(404, 409, 429, 502, 507),
        **takes(bodies.CreateTemplate, templates.create),
    ),
    Route(
        method="GET",
        path="/v1/templates/{name}",
        name="look_at_template",
        summary="Return one template with its pool",
        access=Access.TOKEN,
        answers=(Answer(body=bodies.TemplateAnswer, media=JSON),),
        problems=(404,),
        **reads(bodies.TemplateQuery, templates.look),
    ),
    Route(
        method="DELETE",
        path="/v1/templates/{name}",
        name="remove_template",
        summary="Remove a template with its snapshot; its sandboxes live on",
        access=Access.TEMPLATES,
        answers=(Answer(status=204),),
        problems=(403, 404, 409),
        **reads(bodies.TemplateQuery, templates.remove),
    ),
    Route(
        method="GET",
        path="/v1/images",
        name="list_images",
        summary="List all images",
        access=Access.TOKEN,
        answers=(Answer(body=bodies.ImageList, media=JSON),),
        **reads(bodies.Nothing, templates.list_images),
    ),
    Route(
        method="GET",
        path="/v1/usage",
        name="read_usage",
        summary="Return what your tenant has, and what it may have",
        access=Access.TOKEN,
        answers=(Answer(body=usage.UsageAnswer, media=JSON),),
        problems=(403,),
        **reads(usage.UsageQuery, usage.read),
    ),
    Route(
        method="GET",
        path="/v1/audit",
        name="read_audit",
        summary="Return who did what, the newest first",
        access=Access.AUDIT,
        answers=(Answer(body=audit.AuditList, media=JSON),),
        **reads(audit.AuditQuery, audit.read),
    ),
    Route(
        method="GET",
        path="/healthz",
        name="health",
        summary="Say whether the server serves",
        access=Access.OPEN,
        answers=(Answer(body=bodies.Health, media=JSON),),
        **reads(bodies.Nothing, status.health),
    ),
    Route(
        method="GET",
        path="/metrics",
        name="metrics",
        summary="Return what was counted, for Prometheus",
        access=Access.METRICS,
        answers=(Answer(media="text/plain"),),
        **reads(bodies.Nothing, status.metrics),
    ),
    Route(
        method="GET",
        path="/openapi.json",
        name="document",
        summary="Return this document",
        access=Access.OPEN,
        answers=(Answer(media=JSON),),
        **reads(bodies.Nothing, status.document),
    ),
)
