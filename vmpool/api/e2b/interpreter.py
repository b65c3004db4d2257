"""Interpreter: code and its contexts, on the interpreter's port, as E2B's clients use it.

Each language has a context of its own name that needs no making. A client that leaves interrupts
what it had begun.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final, TypeVar

from aiohttp import web
from msgspec import Struct

from vmpool.agent.contexts import Cell, Contexts, ContextSpec, Language
from vmpool.api import codec, intake, views
from vmpool.api.budget import BUDGET
from vmpool.api.e2b import environment
from vmpool.api.e2b import interpreter_messages as messages
from vmpool.api.e2b.operation import answer
from vmpool.api.e2b.stream import Stream
from vmpool.api.e2b.visit import Endpoint, Opening, Shape
from vmpool.api.execs import NDJSON
from vmpool.api.limits import check_arguments, check_code, check_path
from vmpool.errors import GuestError, InvalidRequestError, NotFoundError, VmpoolError
from vmpool.model import Exited, Result, Started
from vmpool.timed_execution import TimedExecution

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from vmpool.agent.contexts import ContextInfo
    from vmpool.api.e2b.visit import Table, Visit
    from vmpool.model import ExecutionEvent

T = TypeVar("T", bound=Struct)

KEEPALIVE_SECONDS: Final = 5.0

_ALIASES: Final = {"js": "javascript", "node": "javascript", "py": "python", "sh": "bash"}
_LISTED: Final = (Language.PYTHON, Language.JAVASCRIPT)
"""Whose contexts clients expect to be there before anything ran in them."""
_HOME: Final = "/home/user"
_ID: Final = re.compile(r"[a-z0-9]{1,64}\Z")
_KEEPALIVE: Final = messages.encode(messages.Keepalive())


async def health(_: Visit) -> web.Response:
    """Say that code can be run here."""
    return web.Response(text="OK")


async def execute(visit: Visit, body: messages.Execute) -> web.StreamResponse:
    """Run code and send its lines; one that could not begin is refused before the first."""
    cell = _cell(body, visit.limits.published.execution_seconds)
    sandbox = visit.sandbox
    visit.host.audit(sandbox.owner, "context.exec", sandbox.id, {"context": cell.context})
    outer = environment.told_by(sandbox) | sandbox.environment
    stream, transcript = Stream(visit, NDJSON), messages.Transcript()
    async with contextlib.AsyncExitStack() as opened:
        agent = await opened.enter_async_context(sandbox.attended())
        with _told_by_name(cell.context):
            running = agent.contexts.run(cell, outer=outer)
            execution = await opened.enter_async_context(running)
        await opened.enter_async_context(stream.kept_alive(_KEEPALIVE, KEEPALIVE_SECONDS))
        try:
            async for event in TimedExecution(execution, cell.timeout):
                await _tell(stream, event, b"".join(map(messages.encode, transcript.lines(event))))
        except VmpoolError:
            # Only a connection that breaks off makes clients ask whether the sandbox is there.
            await stream.begin()
            raise
    if transcript.exited is None:
        raise GuestError("the guest broke off before the execution's end", code="guest_lost")
    visit.host.metrics.execution(*views.outcome(transcript.exited))
    return stream.response


async def _tell(stream: Stream, event: ExecutionEvent, lines: bytes) -> None:
    """Send the lines of an event, with those that others follow, as a rule at once."""
    if isinstance(event, Exited):
        await stream.finish(lines)
    elif isinstance(event, Started) or (isinstance(event, Result) and event.is_main):
        stream.hold(lines)
    elif lines:
        await stream.send(lines)


async def create(visit: Visit, body: messages.CreateContext) -> web.Response:
    """Make a context; it takes code when the answer comes."""
    language = _language(body.language or Language.PYTHON)
    spec = ContextSpec(language=language, cwd=check_path(body.cwd) if body.cwd else None)
    outer = environment.told_by(visit.sandbox) | visit.sandbox.environment
    async with visit.sandbox.attended() as agent:
        return answer(_shown(await agent.contexts.create(spec, outer=outer)))


async def list_all(visit: Visit) -> web.Response:
    """List the contexts: those that need no making first, and then the oldest first."""
    async with visit.sandbox.attended() as agent:
        made = {info.id: _shown(info) for info in await agent.contexts.list()}
    first = [made.pop(language, _unmade(language)) for language in _LISTED]
    return answer([*first, *made.values()])


async def restart(visit: Visit) -> web.Response:
    """Have a context begin anew, without its state; one that has not begun has none."""
    return await _told(visit, Contexts.restart)


async def close(visit: Visit) -> web.Response:
    """End a context with all that runs and waits there."""
    return await _told(visit, Contexts.close)


async def _told(visit: Visit, what: Callable[[Contexts, str], Awaitable[object]]) -> web.Response:
    """Tell the context that a path names what to do; one taken for granted may not have begun.

    Raises:
        NotFoundError: `context_not_found`.
    """
    id = _id(visit.parts["context"])
    async with visit.sandbox.attended() as agent:
        begun = {info.id for info in await agent.contexts.list()} if id in set(Language) else {id}
        if id in begun:
            with _told_by_name(id):
                await what(agent.contexts, id)
    return web.Response(body=b"null", content_type="application/json")


def _cell(body: messages.Execute, timeout: float) -> Cell:
    """Return what is to run, for as long as its client waits and at most `timeout` seconds.

    Raises:
        InvalidRequestError: Both a context and a language are named; or as `_language`.
        NotFoundError: `context_not_found`: no context can have that id.
        TooLargeError: `code_too_large` or `arguments_too_large`.
    """
    if body.context_id and body.language:
        raise InvalidRequestError("give at most one of 'context_id' and 'language'")
    env = body.env_vars or {}
    check_code(body.code)
    check_arguments((), env)
    id = _id(body.context_id) if body.context_id else _language(body.language or Language.PYTHON)
    unmade = ContextSpec(language=Language(id)) if id in set(Language) else None
    return Cell(context=id, source=body.code, env=env, timeout=timeout, or_create=unmade)


def _language(name: str) -> Language:
    """Return the language that a name means.

    Raises:
        InvalidRequestError: `language_unavailable`.
    """
    lowered = name.lower()
    try:
        return Language(_ALIASES.get(lowered, lowered))
    except ValueError as err:
        raise InvalidRequestError(
            f"there is no interpreter for {name[:64]!r} here",
            code="language_unavailable",
            remedy=f"use one of {', '.join(Language)}; for others, commands.run",
        ) from err


def _id(name: str) -> str:
    if not _ID.match(name):
        raise _missing(name)
    return name


@contextlib.contextmanager
def _told_by_name(id: str) -> Iterator[None]:
    """Say of a context that is not there what clients look for."""
    try:
        yield
    except NotFoundError as err:
        if err.error_code != "context_not_found":
            raise
        raise _missing(id) from err


def _missing(id: str) -> NotFoundError:
    return NotFoundError(f"Context {id[:64]} not found", code="context_not_found")


def _shown(info: ContextInfo) -> messages.Context:
    cwd = views.printable(info.cwd)
    return messages.Context(id=info.id, language=info.language.value, cwd=cwd)


def _unmade(language: Language) -> messages.Context:
    return messages.Context(id=language.value, language=language.value, cwd=_HOME)


def _takes(
    body: type[T], run: Callable[[Visit, T], Awaitable[web.StreamResponse]], opening: Opening
) -> Endpoint:
    """Return the endpoint whose input is a JSON body."""

    async def read(visit: Visit) -> web.StreamResponse:
        with visit.request.app[BUDGET].lend(visit.sandbox.owner) as loan:
            data = await intake.read_json(visit.request, visit.limits, loan)
            return await run(visit, codec.decode(data, body))

    return Endpoint(opening=opening, shape=Shape.TEXT, run=read)


def _asks(
    run: Callable[[Visit], Awaitable[web.StreamResponse]], opening: Opening = Opening.TRAFFIC
) -> Endpoint:
    return Endpoint(opening=opening, shape=Shape.TEXT, run=run)


# Clients send the sandbox's token with code alone: its contexts are open as its ports are.
ENDPOINTS: Final[Table] = {
    ("GET", "/health"): _asks(health, Opening.NOTHING),
    ("POST", "/execute"): _takes(messages.Execute, execute, Opening.TOKEN),
    ("GET", "/contexts"): _asks(list_all),
    ("POST", "/contexts"): _takes(messages.CreateContext, create, Opening.TRAFFIC),
    ("POST", "/contexts/{context}/restart"): _asks(restart),
    ("DELETE", "/contexts/{context}"): _asks(close),
}
