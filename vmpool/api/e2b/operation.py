"""Operation: one thing that E2B's clients ask of the control plane.

As `vmpool.api.route`, for an interface that is not ours to describe: members that nobody here knows
are passed over, for newer clients send more, and errors are told as these clients read them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import msgspec
from aiohttp import web

from vmpool.api import codec, intake
from vmpool.api.auth import Access
from vmpool.api.budget import BUDGET
from vmpool.api.route import Call

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

T = TypeVar("T", bound=msgspec.Struct)

Run = Callable[[Call], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation.

    Attributes:
        access: Who may; the token stands in `X-API-KEY`.
    """

    method: str
    path: str
    access: Access = Access.OWNER
    run: Run


def reads(query: type[T], endpoint: Callable[[Call, T], Awaitable[web.StreamResponse]]) -> Run:
    """Return what runs an operation whose input is its query."""

    async def run(call: Call) -> web.StreamResponse:
        return await endpoint(call, codec.parse_query(call.request.query, query))

    return run


def takes(body: type[T], endpoint: Callable[[Call, T], Awaitable[web.StreamResponse]]) -> Run:
    """Return what runs an operation whose input is a JSON body; none at all is an empty one."""

    async def run(call: Call) -> web.StreamResponse:
        if not call.request.body_exists:
            return await endpoint(call, codec.decode(b"{}", body))
        with call.request.app[BUDGET].lend(call.caller.owner) as loan:
            data = await intake.read_json(call.request, call.limits, loan)
            return await endpoint(call, codec.decode(data, body))

    return run


def answer(
    body: msgspec.Struct | Sequence[msgspec.Struct],
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """Return a JSON response."""
    return web.Response(
        status=status,
        body=msgspec.json.encode(body),
        content_type="application/json",
        headers=headers,
    )


def done() -> web.Response:
    """Return the response of what has nothing to tell."""
    return web.Response(status=204)
