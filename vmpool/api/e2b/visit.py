"""Visit: one request for what E2B's clients find inside a sandbox, let in and on its way.

What answers it is an endpoint in a table by method and path, one table for each port.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from aiohttp import web

from vmpool.api.limits import Limits
from vmpool.host import Host
from vmpool.sandbox import Sandbox


class Opening(Enum):
    """What a request must show."""

    TOKEN = "the sandbox's own access token"  # noqa: S105 -- what, not which
    SIGNATURE = "the sandbox's own access token, or a signature made with it"
    TRAFFIC = "what opens the port: nothing, or a traffic token where the port is private"
    NOTHING = "nothing, of one that runs; of one that is paused, what opens the port: it wakes it"


class Shape(Enum):
    """How errors are told."""

    CONNECT = "connect"
    """`{"code": "not_found", "message": …}`, as the protocol Connect has it."""
    CODE = "code"
    """`{"code": 404, "message": …}`."""
    TEXT = "text"
    """The message alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """One request that has been let in.

    Attributes:
        sandbox: The one that is meant, awake.
        parts: What stood in the place of the names in the endpoint's path.
    """

    request: web.Request
    host: Host
    limits: Limits
    sandbox: Sandbox
    parts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """What answers requests for one path.

    Attributes:
        run: Answers; errors that it raises are told in `shape`, so long as no byte is out.
    """

    opening: Opening = Opening.TOKEN
    shape: Shape = Shape.CONNECT
    run: Callable[[Visit], Awaitable[web.StreamResponse]]


Table = Mapping[tuple[str, str], Endpoint]
"""Endpoints by method and path; a segment may be a name in braces, as in `/contexts/{id}`."""
