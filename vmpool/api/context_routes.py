"""Context routes: what can be done with a sandbox's interpreters, as a table of its own."""

from __future__ import annotations

from typing import Final

from vmpool.api import bodies, contexts, execs
from vmpool.api.auth import Access
from vmpool.api.idempotency import takes_once
from vmpool.api.route import Answer, Route, reads, takes

JSON: Final = "application/json"

_GUEST: Final = (404, 409, 410, 422, 429, 502, 503, 507)

CONTEXT_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/contexts",
        name="create_context",
        summary="Make an interpreter that keeps its state",
        access=Access.SANDBOX,
        answers=(Answer(status=201, body=contexts.ContextAnswer, media=JSON),),
        problems=_GUEST,
        **takes_once(contexts.CreateContext, contexts.create),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes/{id}/contexts",
        name="list_contexts",
        summary="List a sandbox's interpreters, the oldest first",
        access=Access.SANDBOX,
        answers=(Answer(body=contexts.ContextList, media=JSON),),
        problems=_GUEST,
        **reads(bodies.Nothing, contexts.list_all),
    ),
    Route(
        method="DELETE",
        path="/v1/sandboxes/{id}/contexts/{context}",
        name="close_context",
        summary="End an interpreter with all that runs and waits there",
        access=Access.SANDBOX,
        answers=(Answer(status=204),),
        problems=_GUEST,
        **reads(bodies.Nothing, contexts.close),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/contexts/{context}/restart",
        name="restart_context",
        summary="Have an interpreter begin anew, without its state",
        access=Access.SANDBOX,
        answers=(Answer(body=contexts.ContextAnswer, media=JSON),),
        problems=_GUEST,
        **reads(bodies.Nothing, contexts.restart),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/contexts/{context}/interrupt",
        name="interrupt_context",
        summary="Interrupt what runs in an interpreter; its state stays",
        access=Access.SANDBOX,
        answers=(Answer(body=contexts.Interrupted, media=JSON),),
        problems=_GUEST,
        **reads(bodies.Nothing, contexts.interrupt),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/contexts/{context}/exec",
        name="execute_in_context",
        summary="Run something in an interpreter, in its turn, and stream its lines",
        access=Access.SANDBOX,
        answers=(Answer(body=bodies.ExecLine, media=execs.NDJSON),),
        problems=_GUEST,
        **takes(contexts.RunCell, contexts.execute),
    ),
)
