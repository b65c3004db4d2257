"""Process routes: what can be done with a sandbox's kept processes, as a table of its own."""

from __future__ import annotations

from typing import Final

from vmpool.api import bodies, execs, processes
from vmpool.api.auth import Access
from vmpool.api.download import BINARY
from vmpool.api.idempotency import takes_once
from vmpool.api.route import Answer, Route, reads, takes

JSON: Final = "application/json"

_PROCESS: Final = (404, 409, 410, 429, 502, 503, 507)

PROCESS_ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/processes",
        name="start_process",
        summary="Start a program that outlives the request",
        access=Access.SANDBOX,
        answers=(Answer(status=201, body=processes.StartedProcess, media=JSON),),
        problems=(*_PROCESS, 403),
        **takes_once(processes.StartProcess, processes.start),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes/{id}/processes",
        name="list_processes",
        summary="List the processes that were started to stay",
        access=Access.SANDBOX,
        answers=(Answer(body=processes.ProcessList, media=JSON),),
        problems=_PROCESS,
        **reads(bodies.Nothing, processes.list_all),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes/{id}/processes/{pid}",
        name="follow_process",
        summary="Stream what a process writes, line by line, until it ends",
        access=Access.SANDBOX,
        answers=(Answer(body=processes.ProcessLine, media=execs.NDJSON),),
        problems=_PROCESS,
        **reads(processes.AttachQuery, processes.follow),
    ),
    Route(
        method="GET",
        path="/v1/sandboxes/{id}/processes/{pid}/attach",
        name="attach_to_process",
        summary="Follow a process over a WebSocket, and give it input",
        access=Access.SANDBOX,
        answers=(Answer(status=101),),
        problems=(*_PROCESS, 426),
        **reads(processes.AttachQuery, processes.attach),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/processes/{pid}/signal",
        name="signal_process",
        summary="Send a signal to a process's group",
        access=Access.SANDBOX,
        answers=(Answer(status=204),),
        problems=_PROCESS,
        **takes(processes.SendSignal, processes.signal),
    ),
    Route(
        method="POST",
        path="/v1/sandboxes/{id}/processes/{pid}/resize",
        name="resize_process",
        summary="Set the size of a process's terminal",
        access=Access.SANDBOX,
        answers=(Answer(status=204),),
        problems=_PROCESS,
        **takes(processes.WindowSize, processes.resize),
    ),
    Route(
        method="PUT",
        path="/v1/sandboxes/{id}/processes/{pid}/input",
        name="write_process_input",
        summary="Hand a process input; the body's raw bytes",
        access=Access.SANDBOX,
        uploads=BINARY,
        answers=(Answer(status=204),),
        problems=(*_PROCESS, 408, 413, 415),
        **reads(processes.InputQuery, processes.write_input),
    ),
    Route(
        method="DELETE",
        path="/v1/sandboxes/{id}/processes/{pid}",
        name="kill_process",
        summary="Kill a process's group; it is reaped when the answer comes",
        access=Access.SANDBOX,
        answers=(Answer(status=204),),
        problems=_PROCESS,
        **reads(bodies.Nothing, processes.kill),
    ),
)
