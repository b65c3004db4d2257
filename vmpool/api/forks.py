"""Forks: many sandboxes of one, and what came of each."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vmpool.api import problem, sandbox_bodies, views
from vmpool.api.limits import check_arguments, check_metadata, check_path
from vmpool.api.networks import policy_of
from vmpool.api.route import Call, answer
from vmpool.api.task import content_of, rng_of
from vmpool.errors import VmpoolError
from vmpool.forking import ForkRequest
from vmpool.model import ClockPolicy

if TYPE_CHECKING:
    from aiohttp import web

    from vmpool.sandbox import Sandbox


async def fork(call: Call, body: sandbox_bodies.Fork) -> web.Response:
    """Make children of a sandbox, each told of by itself.

    Raises:
        VmpoolError: That of the first child, when there is none at all.
    """
    published = call.limits.published
    timeout = published.sandbox_seconds_default if body.timeout is None else body.timeout
    call.limits.check_timeout(timeout, published.sandbox_seconds)
    check_arguments((), body.env | body.secrets)
    request = ForkRequest(
        count=body.count,
        timeout=timeout,
        metadata=check_metadata(body.metadata),
        env=body.env,
        secrets=body.secrets,
        files={check_path(path): content_of(path, file) for path, file in body.files.items()},
        rng=rng_of(body.rng),
        clock=ClockPolicy(body.clock),
        network=None if body.network is None else policy_of(body.network),
        ticket=call.ticket,
    )
    began_ns = time.perf_counter_ns()
    found = await call.host.fork(call.request.match_info["id"], request, owner=call.caller.owner)
    took_ns = time.perf_counter_ns() - began_ns
    if isinstance(found[0], VmpoolError) and all(isinstance(one, VmpoolError) for one in found):
        raise found[0]
    return answer(
        sandbox_bodies.ForkAnswer(
            children=[_child(call, one) for one in found],
            timings_ms=sandbox_bodies.ForkTimes(total=views.milliseconds(took_ns)),
        ),
        status=201,
    )


def _child(call: Call, made: Sandbox | VmpoolError) -> sandbox_bodies.Child:
    if isinstance(made, VmpoolError):
        told = problem.describe(made, request_id=call.id, limits=call.limits)
        return sandbox_bodies.Child(problem=told)
    return sandbox_bodies.Child(sandbox=views.made(made))
