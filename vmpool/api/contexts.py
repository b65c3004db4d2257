"""Contexts: interpreters in a sandbox that keep their state; their bodies beside them.

Those named `python`, `bash` and `javascript` need no making: the first execution makes them, and
`default` is another name for the first.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Annotated, Final, Literal

from aiohttp import web
from msgspec import Meta, Struct

from vmpool.agent.contexts import Cell, ContextSpec, Language
from vmpool.api import bodies, execs, views
from vmpool.api.limits import check_arguments, check_code, check_path
from vmpool.api.route import answer
from vmpool.errors import NotFoundError
from vmpool.model import DEFAULT_USER
from vmpool.timed_execution import TimedExecution

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.agent.contexts import ContextInfo
    from vmpool.api.route import Call
    from vmpool.sandbox import Sandbox

DEFAULT: Final = "default"
_NEED_NO_MAKING: Final = frozenset(Language)
_ID = re.compile(r"[a-z0-9]{1,64}\Z")

ContextLanguage = Literal["python", "bash", "javascript"]


class CreateContext(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A context to make; `env` is there for all that runs in it."""

    language: ContextLanguage = "python"
    env: bodies.Env = {}
    cwd: bodies.GuestPath | None = None
    user: bodies.Account = DEFAULT_USER


class RunCell(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to run in a context; `env` holds for this execution alone."""

    code: Annotated[str, Meta(pattern="^[^\\u0000]*$")]
    env: bodies.Env = {}
    timeout: bodies.Seconds | None = None


class ContextAnswer(Struct, frozen=True, kw_only=True):
    """A context: how many executions its interpreter was given, and how many wait for it."""

    id: str
    language: ContextLanguage
    cwd: str
    user: str
    state: str
    pid: int | None
    executions: int
    waiting: int


class ContextList(Struct, frozen=True, kw_only=True):
    """The contexts of a sandbox, the oldest first."""

    contexts: list[ContextAnswer]


class Interrupted(Struct, frozen=True, kw_only=True):
    """Whether anything ran that could be interrupted."""

    interrupted: bool


async def create(call: Call, body: CreateContext) -> web.Response:
    """Make a context; it takes executions when the answer comes."""
    check_arguments((), body.env)
    spec = ContextSpec(
        language=Language(body.language),
        env=body.env,
        cwd=None if body.cwd is None else check_path(body.cwd),
        user=body.user,
    )
    sandbox = await call.sandbox()
    async with sandbox.attended() as agent:
        made = await agent.contexts.create(spec, outer=sandbox.environment)
    return answer(_shown(made), status=201)


async def list_all(call: Call, _: bodies.Nothing) -> web.Response:
    """List the contexts of a sandbox."""
    async with (await call.sandbox()).attended() as agent:
        listed = await agent.contexts.list()
    return answer(ContextList(contexts=[_shown(info) for info in listed]))


async def close(call: Call, _: bodies.Nothing) -> web.Response:
    """End a context with all that runs and waits there."""
    id = _id(call)
    async with (await call.sandbox()).attended() as agent:
        await agent.contexts.close(id)
    return web.Response(status=204)


async def restart(call: Call, _: bodies.Nothing) -> web.Response:
    """Have a context begin anew, without its state."""
    id = _id(call)
    async with (await call.sandbox()).attended() as agent:
        return answer(_shown(await agent.contexts.restart(id)))


async def interrupt(call: Call, _: bodies.Nothing) -> web.Response:
    """Interrupt what runs in a context."""
    id = _id(call)
    async with (await call.sandbox()).attended() as agent:
        return answer(Interrupted(interrupted=await agent.contexts.interrupt(id)))


async def execute(call: Call, body: RunCell) -> web.StreamResponse:
    """Run something in a context and stream its lines; a start that fails is a problem."""
    published = call.limits.published
    timeout = published.execution_seconds_default if body.timeout is None else body.timeout
    call.limits.check_timeout(timeout, published.execution_seconds)
    check_code(body.code)
    check_arguments((), body.env)
    id = _id(call)
    cell = Cell(
        context=id,
        source=body.code,
        env=body.env,
        timeout=timeout,
        or_create=ContextSpec(language=Language(id)) if id in _NEED_NO_MAKING else None,
    )
    sandbox = await call.sandbox()
    call.host.audit(call.caller.owner, "context.exec", sandbox.id, {"context": id})
    return await execs.stream(call, _running(sandbox, cell))


@contextlib.asynccontextmanager
async def _running(sandbox: Sandbox, cell: Cell) -> AsyncIterator[TimedExecution]:
    async with (
        sandbox.attended() as agent,
        agent.contexts.run(cell, outer=sandbox.environment) as execution,
    ):
        yield TimedExecution(execution, cell.timeout)


def _id(call: Call) -> str:
    """Return the id that the path names.

    Raises:
        NotFoundError: `context_not_found`: no context can have it.
    """
    id = call.request.match_info["context"]
    if not _ID.match(id):
        raise NotFoundError(f"there is no context {id[:64]!r}", code="context_not_found")
    return Language.PYTHON.value if id == DEFAULT else id


def _shown(info: ContextInfo) -> ContextAnswer:
    return ContextAnswer(
        id=info.id,
        language=info.language.value,
        cwd=views.printable(info.cwd),
        user=views.printable(info.user),
        state=views.printable(info.state),
        pid=info.pid,
        executions=info.executions,
        waiting=info.waiting,
    )
