"""Route: one operation of the interface, as a value.

The router and `/openapi.json` are both made from the same routes, so that neither can say what the
other does not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from aiohttp import web

from vmpool.api import codec, intake
from vmpool.api.auth import Access, Caller
from vmpool.api.bodies import Nothing
from vmpool.api.budget import BUDGET
from vmpool.api.limits import Limits
from vmpool.host import Host

if TYPE_CHECKING:
    from vmpool.sandbox import Sandbox

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request that has been let in.

    Attributes:
        id: The request's own, in its answer's headers and in the log.
        ticket: Stands for its idempotency key in the journal; empty when it has none.
    """

    id: str
    request: web.Request
    host: Host
    limits: Limits
    caller: Caller
    ticket: bytes = b""

    async def sandbox(self) -> Sandbox:
        """Return the sandbox that the path names, awake: its guest is needed.

        Raises:
            NotFoundError: `sandbox_not_found` or `sandbox_ended`.
            ConflictError: `sandbox_paused`, unless it was made to wake on request.
            VmpoolError: It could not be woken, and stays paused.
        """
        return await self.host.awake(self.request.match_info["id"], owner=self.caller.owner)


class Source(Enum):
    """Where an operation's input stands."""

    QUERY = "query"
    BODY = "body"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What an operation answers when all is well.

    Attributes:
        body: Type of the answer, or of each line of it; `None` for no body or one of raw bytes.
        media: Content type; empty for no body.
    """

    status: int = 200
    body: Any = None
    media: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One operation.

    Attributes:
        name: The operation's stable id.
        summary: What it does, in a line.
        takes: Type of its input, standing in `source`.
        uploads: Content type of a body that is streamed; `takes` is then the query.
        repeatable: Whether it takes an idempotency key.
        problems: Statuses of the problems that it may answer with, beside those that any may.
        run: Does it.
    """

    method: str
    path: str
    name: str
    summary: str
    access: Access
    takes: type[msgspec.Struct]
    source: Source
    answers: tuple[Answer, ...]
    problems: tuple[int, ...] = ()
    uploads: str = ""
    repeatable: bool = False
    run: Callable[[Call], Awaitable[web.StreamResponse]]


def reads(
    query: type[T], endpoint: Callable[[Call, T], Awaitable[web.StreamResponse]]
) -> dict[str, Any]:
    """Return the parts of a route whose input is its query."""

    async def run(call: Call) -> web.StreamResponse:
        return await endpoint(call, codec.parse_query(call.request.query, query))

    return {"takes": query, "source": Source.QUERY, "run": run}


def takes(
    body: type[T], endpoint: Callable[[Call, T], Awaitable[web.StreamResponse]]
) -> dict[str, Any]:
    """Return the parts of a route whose input is a JSON body."""

    async def run(call: Call) -> web.StreamResponse:
        codec.parse_query(call.request.query, Nothing)
        with call.request.app[BUDGET].lend(call.caller.owner) as loan:
            data = await intake.read_json(call.request, call.limits, loan)
            return await endpoint(call, codec.decode(data, body))

    return {"takes": body, "source": Source.BODY, "run": run}


def answer(body: msgspec.Struct, *, status: int = 200) -> web.Response:
    """Return a JSON response."""
    return web.Response(
        status=status, body=codec.encode(body), content_type="application/json", charset=None
    )
