"""Sandboxes: made, listed, come back to, paused, forked and killed, as E2B's clients ask for it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote

from vmpool.api.e2b import naming, problem
from vmpool.api.e2b.control import bodies, networks, views
from vmpool.api.e2b.operation import answer, done
from vmpool.api.limits import OURS, check_arguments, check_metadata
from vmpool.cancellation import uninterrupted
from vmpool.errors import ConflictError, InvalidRequestError, VmpoolError
from vmpool.forking import ForkRequest
from vmpool.host import CreateRequest
from vmpool.lifecycle import AutoResume, Keep, OnExpiry, SandboxState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp import web

    from vmpool.api.route import Call
    from vmpool.egress import NetworkPolicy
    from vmpool.sandbox import Sandbox

PAIRS_MOST = 64
"""Of metadata: no sandbox has more."""


async def create(call: Call, body: bodies.NewSandbox) -> web.Response:
    """Make a sandbox."""
    _refuse_absent(body)
    call.limits.check_timeout(body.timeout, call.limits.published.sandbox_seconds)
    env = body.env or {}
    check_arguments((), env)
    source = naming.source_of(call.host, body.template, owner=call.caller.owner)
    request = CreateRequest(
        template=source.template,
        checkpoint=source.checkpoint,
        timeout=body.timeout,
        metadata=check_metadata(body.metadata or {}),
        env=env,
        wait=call.limits.published.wait_seconds_default,
        on_expiry=_on_expiry(body),
        auto_resume=_auto_resume(body),
        network=_network(call, body, of=source),
        ticket=call.ticket,
    )
    sandbox = await call.host.create(request, owner=call.caller.owner)
    public = body.network is None or body.network.allow_public_traffic is not False
    return answer(await _opened(call, sandbox, public=public), status=201)


def _network(call: Call, body: bodies.NewSandbox, *, of: naming.Source) -> NetworkPolicy | None:
    """Return what a sandbox may reach; `None` for what the one might that it is made of."""
    internet = body.allow_internet_access
    if of.checkpoint is not None and body.network is None and internet is not False:
        return None
    return networks.policy_of(body.network, internet, usual=call.host.settings.network.default)


async def _opened(call: Call, sandbox: Sandbox, *, public: bool) -> bodies.SandboxAnswer:
    """Say who may reach the ports of a new sandbox and return it; or end it."""
    try:
        if public:
            await call.host.ports.publish(sandbox, None, public=True)
        return await views.made(call.host, sandbox)
    except BaseException:
        await uninterrupted(call.host.kill(sandbox.id, owner=sandbox.owner))
        raise


async def list_own(call: Call, query: bodies.SandboxesQuery) -> web.Response:
    """List the caller's sandboxes, the newest first unless asked otherwise."""
    page, headers = _page(_wanted(call, query), query)
    return answer([views.listed(call.host, each) for each in page], headers=headers)


async def list_running(call: Call, query: bodies.SandboxesQuery) -> web.Response:
    """List all of the caller's sandboxes that run."""
    running = [each for each in _wanted(call, query) if views.state_of(each) == "running"]
    return answer([views.listed(call.host, each) for each in running])


async def look(call: Call, _: bodies.Nothing) -> web.Response:
    """Return one sandbox."""
    return answer(await views.detail(call.host, await _sandbox(call)))


async def kill(call: Call, _: bodies.Nothing) -> web.Response:
    """End a sandbox; the answer comes when its machine is gone."""
    await call.host.kill(_id(call), owner=call.caller.owner)
    return done()


async def connect(call: Call, body: bodies.Connect) -> web.Response:
    """Come back to a sandbox: 200 if it runs, 201 if it was resumed; its time only grows."""
    call.limits.check_timeout(body.timeout, call.limits.published.sandbox_seconds)
    sandbox = await _sandbox(call)
    if sandbox.state in {SandboxState.RUNNING, SandboxState.ROLLING_BACK}:
        await _lengthen(call, sandbox, body.timeout)
        return answer(await views.made(call.host, sandbox))
    sandbox = await call.host.resume(
        sandbox.id, owner=sandbox.owner, timeout=body.timeout, keep=keep_of(body.memory)
    )
    return answer(await views.made(call.host, sandbox), status=201)


async def set_timeout(call: Call, body: bodies.Timeout) -> web.Response:
    """Move a sandbox's deadline, nearer as well; no time at all ends it."""
    call.limits.check_timeout(body.timeout, call.limits.published.sandbox_seconds)
    await call.host.set_timeout(_id(call), owner=call.caller.owner, timeout=body.timeout)
    return done()


async def refresh(call: Call, body: bodies.Refresh) -> web.Response:
    """Move a sandbox's deadline, further only."""
    call.limits.check_timeout(body.duration, call.limits.published.sandbox_seconds)
    await _lengthen(call, await _sandbox(call), body.duration)
    return done()


async def pause(call: Call, body: bodies.Pause) -> web.Response:
    """Save a sandbox and end its machine.

    Raises:
        ConflictError: `sandbox_paused`; it is so already, which these clients are told.
    """
    if (await _sandbox(call)).state is SandboxState.PAUSED:
        raise ConflictError(f"sandbox {_id(call)!r} is paused", code="sandbox_paused")
    await call.host.pause(_id(call), owner=call.caller.owner, keep=keep_of(body.memory))
    return done()


async def fork(call: Call, body: bodies.Fork) -> web.Response:
    """Make children that go on where a sandbox is, each told of by itself."""
    call.limits.check_timeout(body.timeout, call.limits.published.sandbox_seconds)
    parent = await call.host.awake(_id(call), owner=call.caller.owner)
    public = (await call.host.ports.exposure(parent)).public
    own = {key: word for key, word in parent.metadata.items() if not key.startswith(OURS)}
    request = ForkRequest(count=body.count, timeout=body.timeout, metadata=own)
    found = await call.host.fork(parent.id, request, owner=call.caller.owner)
    told = [await _child(call, each, public=public) for each in found]
    return answer(told, status=201)


async def _child(call: Call, made: Sandbox | VmpoolError, *, public: bool) -> bodies.Forked:
    try:
        if isinstance(made, VmpoolError):
            raise made
        return bodies.Forked(sandbox=await _opened(call, made, public=public))
    except VmpoolError as err:
        failure = bodies.Failure(code=problem.status_of(err), message=problem.message_of(err))
        return bodies.Forked(error=failure)


async def replace_network(call: Call, body: bodies.NetworkUpdate) -> web.Response:
    """Let other rules hold for what a sandbox reaches, and who reaches it."""
    policy = networks.policy_of(
        body, body.allow_internet_access, usual=call.host.settings.network.default
    )
    await call.host.networks.replace(_id(call), policy, owner=call.caller.owner)
    if body.allow_public_traffic is not None:
        sandbox = await _sandbox(call)
        await call.host.ports.publish(sandbox, None, public=body.allow_public_traffic)
    return done()


async def _sandbox(call: Call) -> Sandbox:
    return await call.host.sandbox(_id(call), owner=call.caller.owner)


def _id(call: Call) -> str:
    return call.request.match_info["id"]


async def _lengthen(call: Call, sandbox: Sandbox, timeout: float) -> None:
    if sandbox.left_seconds < timeout:
        await call.host.set_timeout(sandbox.id, owner=sandbox.owner, timeout=timeout)


def _auto_resume(body: bodies.NewSandbox) -> AutoResume:
    wakes = body.auto_resume is not None and body.auto_resume.enabled
    return AutoResume.ON_REQUEST if wakes else AutoResume.NEVER


def _on_expiry(body: bodies.NewSandbox) -> OnExpiry:
    if not body.auto_pause:
        return OnExpiry.KILL
    return OnExpiry.PAUSE_DISK if body.auto_pause_memory is False else OnExpiry.PAUSE


def keep_of(memory: bool | None) -> Keep:
    """Return what is kept of a sandbox, as these clients say it."""
    return Keep.DISK if memory is False else Keep.MEMORY


def _refuse_absent(body: bodies.NewSandbox) -> None:
    if body.iam:
        raise networks.unsupported("identity tokens for workloads")
    if body.volume_mounts:
        raise networks.unsupported("mounting volumes")


def _wanted(call: Call, query: bodies.SandboxesQuery) -> list[Sandbox]:
    """Return those of the caller's sandboxes that a query means.

    Raises:
        InvalidRequestError: The metadata are too many, or the time is none.
    """
    wanted = _metadata(query.metadata)
    states = query.state.split(",") if query.state else ["running", "paused"]
    after = _after(query.started_after)
    return [
        sandbox
        for sandbox in call.host.sandboxes(owner=call.caller.owner)
        if wanted.items() <= sandbox.metadata.items()
        and views.state_of(sandbox) in states
        and sandbox.created_ns >= after
        and query.template in {None, sandbox.template}
    ]


def _metadata(text: str) -> dict[str, str]:
    """Return the pairs that are asked for; each word is escaped once more than a form's are."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=PAIRS_MOST)
    except ValueError as err:
        raise InvalidRequestError(f"metadata of a query has {PAIRS_MOST} pairs at most") from err
    return {unquote(name): unquote(value) for name, value in pairs}


def _after(text: str | None) -> int:
    if text is None:
        return 0
    try:
        at = datetime.fromisoformat(text)
        return int(at.timestamp() * 1000) * 1_000_000  # as exactly as we tell it
    except (ValueError, OverflowError) as err:
        raise InvalidRequestError(f"startedAfter {text!r} is no time of RFC 3339") from err


def _page(
    found: Iterable[Sandbox], query: bodies.SandboxesQuery
) -> tuple[list[Sandbox], dict[str, str]]:
    """Return a page, and how to ask for the next one if there is any."""
    newest_first = query.order == "desc"
    places = sorted(found, key=_place, reverse=newest_first)
    if query.next_token is not None:
        created, _, id = query.next_token.partition("-")
        last = int(created), id
        places = [
            each
            for each in places
            if (_place(each) < last if newest_first else _place(each) > last)
        ]
    page = places[: query.limit]
    if len(places) == len(page):
        return page, {}
    return page, {"x-next-token": f"{page[-1].created_ns}-{page[-1].id}"}


def _place(sandbox: Sandbox) -> tuple[int, str]:
    """Return where a sandbox stands in lists; stable while others come and go."""
    return sandbox.created_ns, sandbox.id
