"""Sandboxes: create, list, look, extend, kill; and runs, which need none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from aiohttp import web

from vmpool.api import bodies, sandbox_bodies, views
from vmpool.api.limits import check_arguments, check_metadata, check_path
from vmpool.api.networks import policy_of
from vmpool.api.ports import open_first
from vmpool.api.route import Call, answer
from vmpool.api.task import content_of, rng_of, stdin_of, task_of
from vmpool.egress import UNCONNECTED, NetworkPolicy
from vmpool.host import CreateRequest
from vmpool.lifecycle import AutoResume, OnExpiry
from vmpool.model import ClockPolicy
from vmpool.run import RunRequest

if TYPE_CHECKING:
    from vmpool.sandbox import Sandbox

DEFAULT_TEMPLATE: Final = "python"


async def run(call: Call, body: bodies.Run) -> web.Response:
    """Run once in a machine of its own; the machine is gone afterwards, whatever happened."""
    published = call.limits.published
    request = RunRequest(
        template=body.template,
        what=task_of(body, call.limits),
        stdin=stdin_of(body),
        files={check_path(path): content_of(path, file) for path, file in body.files.items()},
        collect=tuple(dict.fromkeys(check_path(path) for path in body.return_files)),
        output_limit_bytes=published.output_bytes,
        result_limit_bytes=published.output_bytes,
        file_limit_bytes=published.returned_files_bytes,
        wait=_wait(call, body.wait),
        network=UNCONNECTED if body.network is None else policy_of(body.network),
    )
    outcome = await call.host.run(request, owner=call.caller.owner)
    call.host.metrics.execution(*views.outcome(outcome.exited))
    return answer(views.run(outcome))


async def create(call: Call, body: sandbox_bodies.CreateSandbox) -> web.Response:
    """Make a sandbox."""
    published = call.limits.published
    timeout = published.sandbox_seconds_default if body.timeout is None else body.timeout
    call.limits.check_timeout(timeout, published.sandbox_seconds)
    check_arguments((), body.env | body.secrets)
    if body.idle_timeout is not None:
        call.limits.check_timeout(body.idle_timeout, published.sandbox_seconds)
    request = CreateRequest(
        template=body.template or ("" if body.checkpoint is not None else DEFAULT_TEMPLATE),
        checkpoint=body.checkpoint,
        timeout=timeout,
        metadata=check_metadata(body.metadata),
        env=body.env,
        secrets=body.secrets,
        wait=_wait(call, body.wait),
        on_expiry=OnExpiry(body.on_expiry),
        idle_timeout=body.idle_timeout,
        auto_resume=AutoResume.ON_REQUEST if body.auto_resume else AutoResume.NEVER,
        rng=rng_of(body.rng),
        clock=ClockPolicy(body.clock),
        network=_network(call, body),
        ticket=call.ticket,
    )
    sandbox = await call.host.create(request, owner=call.caller.owner)
    return answer(views.made(await open_first(call, sandbox, body.public_ports)), status=201)


async def list_own(call: Call, query: sandbox_bodies.ListSandboxesQuery) -> web.Response:
    """List the caller's sandboxes, newest first."""
    wanted = dict(item.split("=", 1) for item in query.metadata)
    after = None if query.cursor is None else _parse_cursor(query.cursor)
    found = sorted(
        (
            sandbox
            for sandbox in call.host.sandboxes(owner=call.caller.owner)
            if wanted.items() <= sandbox.metadata.items()
            and (after is None or _place(sandbox) < after)
        ),
        key=_place,
        reverse=True,
    )
    page = found[: query.limit]
    more = len(found) > len(page)
    return answer(
        sandbox_bodies.SandboxList(
            sandboxes=[views.sandbox(sandbox) for sandbox in page],
            next_cursor=_cursor(page[-1]) if more else None,
        )
    )


async def look(call: Call, _: bodies.Nothing) -> web.Response:
    """Return one sandbox."""
    sandbox = await call.host.sandbox(call.request.match_info["id"], owner=call.caller.owner)
    return answer(views.sandbox(sandbox))


async def kill(call: Call, _: bodies.Nothing) -> web.Response:
    """End a sandbox; the answer comes when its machine is gone."""
    await call.host.kill(call.request.match_info["id"], owner=call.caller.owner)
    return web.Response(status=204)


async def set_timeout(call: Call, body: sandbox_bodies.SetTimeout) -> web.Response:
    """Move a sandbox's deadline."""
    call.limits.check_timeout(body.timeout, call.limits.published.sandbox_seconds)
    sandbox = await call.host.set_timeout(
        call.request.match_info["id"], owner=call.caller.owner, timeout=body.timeout
    )
    return answer(views.sandbox(sandbox))


def _wait(call: Call, wait: float | None) -> float:
    if wait is None:
        return call.limits.published.wait_seconds_default
    call.limits.check_wait(wait)
    return wait


def _network(call: Call, body: sandbox_bodies.CreateSandbox) -> NetworkPolicy | None:
    if body.network is not None:
        return policy_of(body.network)
    if body.checkpoint is not None:
        return None  # as the checkpoint has it
    return NetworkPolicy(mode=call.host.settings.network.default)


def _place(sandbox: Sandbox) -> tuple[int, str]:
    """Return where a sandbox stands in lists; stable while others come and go."""
    return sandbox.created_ns, sandbox.id


def _cursor(sandbox: Sandbox) -> str:
    return f"{sandbox.created_ns}-{sandbox.id}"


def _parse_cursor(cursor: str) -> tuple[int, str]:
    created_ns, _, sandbox_id = cursor.partition("-")  # as the type of the query has it
    return int(created_ns), sandbox_id
