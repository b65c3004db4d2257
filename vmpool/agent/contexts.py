"""Contexts: a guest's interpreters that keep their state, seen from the host.

Everything that the guest says of them is checked before it becomes a value.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from vmpool.agent import answers
from vmpool.agent.asking import patience
from vmpool.agent.execution import Execution
from vmpool.errors import ConflictError, GuestError, InvalidRequestError, NotFoundError, VmpoolError
from vmpool.model import DEFAULT_USER, Started

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from vmpool.agent.link import Link
    from vmpool_agent import wire

REFUSALS: dict[str, type[VmpoolError]] = {
    "context_busy": ConflictError,
    "context_lost": ConflictError,
    "context_not_found": NotFoundError,
    "language_unavailable": InvalidRequestError,
    "too_many_contexts": ConflictError,
}
_REMEDIES = {
    "context_busy": "wait for those before it, or interrupt them",
    "context_lost": "run again what its state came from",
    "language_unavailable": "use a template whose image has it, or build one that does",
    "too_many_contexts": "close those that are done with",
}
_ID = re.compile(r"[a-z0-9]{1,64}\Z")
_MAX_CONTEXTS = 64
"""What a guest may list; ours keep 32."""
_MAX_TEXT = 4096


class Language(StrEnum):
    """What a context's interpreter understands."""

    PYTHON = "python"
    BASH = "bash"
    JAVASCRIPT = "javascript"


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextSpec:
    """What a context is made of: an interpreter that keeps its state.

    Attributes are as in `Command`; `env` is there for all that runs in it.
    """

    language: Language = Language.PYTHON
    env: dict[str, str] = field(default_factory=dict, repr=False)
    cwd: str | None = None
    user: str = DEFAULT_USER


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextInfo:
    """A context of a guest.

    Attributes:
        state: `starting`, `idle`, `busy` or `down`; from the last the next execution wakes it.
        pid: Of its interpreter, `None` while there is none.
        executions: How many its interpreter was given.
        waiting: How many wait behind the one that runs.
    """

    id: str
    language: Language
    cwd: str
    user: str
    state: str
    pid: int | None
    executions: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Source to run in a context.

    Attributes:
        context: Its id.
        env: For this execution alone.
        timeout: Seconds from its beginning until it is interrupted; `None` for no limit.
        or_create: What the context is made of if there is none of that id; `None` to be refused.
    """

    context: str
    source: str
    env: dict[str, str] = field(default_factory=dict, repr=False)
    timeout: float | None = None
    or_create: ContextSpec | None = None


class Contexts:
    """The contexts of one guest, over its agent's link."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def create(self, spec: ContextSpec, *, outer: Mapping[str, str]) -> ContextInfo:
        """Make a context; it takes executions when this returns, and is gone if this is cancelled.

        Args:
            outer: The sandbox's environment.

        Raises:
            InvalidRequestError: `language_unavailable`; or the guest refused it otherwise.
            ConflictError: `too_many_contexts`.
            GuestError: The guest died, hung or broke the protocol.
        """
        answer = await self._ask({"op": "context_create", **_made_of(spec), "outer": dict(outer)})
        return _context(answer.get("context"))

    async def list(self) -> tuple[ContextInfo, ...]:
        """Return all contexts, the oldest first.

        Raises:
            GuestError: The guest died, hung or broke the protocol.
        """
        listed = (await self._ask({"op": "contexts"})).get("contexts")
        if not isinstance(listed, list) or len(listed) > _MAX_CONTEXTS:
            raise answers.malformed("contexts")
        return tuple(map(_context, listed))

    @contextlib.asynccontextmanager
    async def run(self, cell: Cell, *, outer: Mapping[str, str]) -> AsyncGenerator[Execution, None]:
        """Run something in a context, after all that waits there already.

        Leaving the block interrupts what still runs.

        Args:
            outer: The sandbox's environment.

        Raises:
            NotFoundError: `context_not_found`.
            ConflictError: `context_busy`, `context_lost`, `too_many_contexts`.
            InvalidRequestError: The guest refused it; the code says why.
            TooLargeError: The request is too large for the protocol.
            GuestError: The guest died, hung or broke the protocol.
        """
        request = {
            "op": "context_run",
            "context": cell.context,
            "source": cell.source,
            "env": cell.env,
            "outer": dict(outer),
            "timeout": cell.timeout,
            "or_create": None if cell.or_create is None else _made_of(cell.or_create),
        }
        async with self._link.open() as channel:
            async with patience():
                await channel.send_message(request)
                first = _expect(await channel.receive())
            if first.get("type") == "queued":
                # For as long as those before it take, each of which has a limit of its own.
                first = _expect(await channel.receive())
            started = answers.execution_event(first)
            if not isinstance(started, Started):
                raise GuestError("output before start", code="guest_protocol")
            yield Execution(channel, started, stdin=False)

    async def interrupt(self, id: str) -> bool:
        """Interrupt what runs in a context; return whether anything did.

        Raises:
            NotFoundError: `context_not_found`.
            GuestError: The guest died, hung or broke the protocol.
        """
        answer = await self._ask({"op": "context_interrupt", "context": id})
        return answer.get("interrupted") is True

    async def restart(self, id: str) -> ContextInfo:
        """Have a context begin anew, without its state; what runs and waits there ends.

        Raises:
            NotFoundError: `context_not_found`.
            InvalidRequestError: It cannot be started again: its directory is gone, for one.
            GuestError: The guest died, hung or broke the protocol.
        """
        answer = await self._ask({"op": "context_restart", "context": id})
        return _context(answer.get("context"))

    async def close(self, id: str) -> None:
        """End a context, and all that runs and waits there.

        Raises:
            NotFoundError: `context_not_found`.
            GuestError: The guest died, hung or broke the protocol.
        """
        await self._ask({"op": "context_close", "context": id})

    async def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        async with self._link.open() as channel, patience():
            await channel.send_message(request)
            return answers.done(_expect(await channel.receive()))


def _expect(event: wire.Data | wire.Message | None) -> dict[str, Any]:
    """Return the message that must come now.

    Raises:
        VmpoolError: A refusal that is about contexts.
        GuestError: The guest broke the protocol.
    """
    message = answers.expect(event)
    code = message.get("code")
    if message.get("type") == "error" and code in REFUSALS:
        error = answers.refusal(message, frozenset({code}), REFUSALS[code])
        error.remedy = _REMEDIES.get(code, "")
        raise error
    if message.get("type") == "error":
        raise answers.refusal(message, answers.REQUEST_REFUSALS, InvalidRequestError)
    return message


def _made_of(spec: ContextSpec) -> dict[str, Any]:
    return {
        "language": spec.language.value,
        "env": spec.env,
        "cwd": spec.cwd,
        "user": spec.user,
    }


def _context(told: object) -> ContextInfo:
    """Return a context as the guest tells of it.

    Raises:
        GuestError: It is malformed.
    """
    if not isinstance(told, dict) or not _ID.match(str(told.get("id"))):
        raise answers.malformed("context")
    try:
        language = Language(str(told.get("language")))
    except ValueError as err:
        raise answers.malformed("language") from err
    return ContextInfo(
        id=str(told["id"]),
        language=language,
        cwd=str(told.get("cwd"))[:_MAX_TEXT],
        user=str(told.get("user"))[:_MAX_TEXT],
        state=str(told.get("state"))[:_MAX_TEXT],
        pid=None if told.get("pid") is None else answers.integer(told, "pid"),
        executions=answers.integer(told, "executions"),
        waiting=answers.integer(told, "waiting"),
    )
