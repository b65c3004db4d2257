"""Sandbox bodies: the JSON objects about a sandbox's life.

As `bodies`, which has the rest: the types are the interface, and check form only.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Meta, Struct, UnsetType, field

from vmpool.api.bodies import Env, Metadata, Name, Receipt, Seconds


class CreateSandbox(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What sandbox to make."""

    template: Name = "python"
    timeout: Seconds | None = None
    metadata: Metadata = {}
    env: Env = {}
    wait: Annotated[float, Meta(ge=0)] | None = None


class SetTimeout(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds from now until the sandbox is killed; shortens as well as extends."""

    timeout: Annotated[float, Meta(ge=0)]


class ListSandboxesQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which sandboxes; `metadata` is `key=value`, may be repeated, and all must match."""

    metadata: Annotated[
        list[Annotated[str, Meta(max_length=2048, pattern="^[^=]+=")]], Meta(max_length=64)
    ] = []
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Annotated[str, Meta(pattern="^[0-9]{1,20}-[a-z0-9]{1,64}$")] | None = None


class RestoreTimes(Struct, frozen=True, kw_only=True):
    """How long making a sandbox took, in milliseconds.

    `acquire` is what you waited for; the other phases were, as a rule, over before you asked.
    """

    acquire: float
    spawn: float
    load: float
    resume: float
    hello: float
    identify: float
    warm: float
    rest: float


class SandboxAnswer(Struct, frozen=True, kw_only=True):
    """A sandbox."""

    id: str
    template: str
    state: str
    created_at: str
    expires_at: str
    metadata: dict[str, str]
    identity: Receipt
    timings_ms: RestoreTimes
    access_token: str | UnsetType = field(default=UNSET)


class SandboxList(Struct, frozen=True, kw_only=True):
    """Your sandboxes, newest first; `next_cursor` asks for those after them."""

    sandboxes: list[SandboxAnswer]
    next_cursor: str | None
