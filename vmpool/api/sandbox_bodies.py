"""Sandbox bodies: the JSON objects about a sandbox's life, its checkpoints and its children.

As `bodies`, which has the rest: the types are the interface, and check form only.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from vmpool.api.bodies import Env, FileContent, GuestPath, Metadata, Name, Problem, Receipt, Seconds
from vmpool.api.network_bodies import Network, Port
from vmpool.exposure import MOST_PORTS
from vmpool.store import IfTaken

CheckpointName = Annotated[
    str,
    Meta(
        description="An id, or a name of your own, perhaps with a tag behind a colon",
        pattern="^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(:[A-Za-z0-9][A-Za-z0-9._-]{0,63})?$",
    ),
]


class Seed(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every random generator starts from this number, so that what is drawn repeats."""

    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)]


RngPolicy = Literal["unique", "preserve"] | Seed
ClockPolicy = Literal["now", "frozen-at-snapshot"]
OnExpiry = Literal["kill", "pause", "pause_disk"]
Keep = Literal["memory", "disk"]


class CreateSandbox(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What sandbox to make: of a template, `python` if left out, or of a checkpoint.

    `on_expiry` says what comes at its deadline and after `idle_timeout` seconds without work, with
    `pause_disk` a pause that keeps the disk alone; `auto_resume` that a paused one wakes when
    something is asked of its guest.
    """

    template: Name | None = None
    checkpoint: CheckpointName | None = None
    timeout: Seconds | None = None
    metadata: Metadata = {}
    env: Env = {}
    secrets: Env = {}
    wait: Annotated[float, Meta(ge=0)] | None = None
    on_expiry: OnExpiry = "kill"
    idle_timeout: Seconds | None = None
    auto_resume: bool = False
    rng: RngPolicy = "unique"
    clock: ClockPolicy = "now"
    network: Network | None = None
    public_ports: Annotated[list[Port], Meta(max_length=MOST_PORTS)] = []


class SetTimeout(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Seconds from now until the sandbox's deadline; shortens as well as extends."""

    timeout: Annotated[float, Meta(ge=0)]


class Resume(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to go on with a paused sandbox; `timeout` sets its deadline, counted from now.

    With `keep` as `disk` it is booted on its disk, also when its memory was kept.
    """

    timeout: Seconds | None = None
    keep: Keep = "memory"


class Pause(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to keep of it: all that it is, or with `disk` what is on its disk, and nothing else."""

    keep: Keep = "memory"


class CreateCheckpoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A checkpoint to take; `name` is yours, and no other checkpoint of yours has it.

    With `if_taken` as `move` it is taken from whichever has it, which goes by its id from then on.
    With `keep` as `disk` it is what is on the sandbox's disk: what is made of it is booted.
    """

    name: CheckpointName | None = None
    if_taken: IfTaken = IfTaken.REFUSE
    keep: Keep = "memory"


class Rollback(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to go back to."""

    checkpoint: CheckpointName


class Fork(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What children to make of a running sandbox.

    `env` comes on top of the parent's, `files` are written before a child is anybody's.
    """

    count: Annotated[int, Meta(ge=1, le=4096)] = 1
    timeout: Seconds | None = None
    metadata: Metadata = {}
    env: Env = {}
    secrets: Env = {}
    files: dict[GuestPath, FileContent] = {}
    rng: RngPolicy = "unique"
    clock: ClockPolicy = "now"
    network: Network | None = None


class ListSandboxesQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which sandboxes; `metadata` is `key=value`, may be repeated, and all must match."""

    metadata: Annotated[
        list[Annotated[str, Meta(max_length=2048, pattern="^[^=]+=")]], Meta(max_length=64)
    ] = []
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    cursor: Annotated[str, Meta(pattern="^[0-9]{1,20}-[a-z0-9]{1,64}$")] | None = None


class ListCheckpointsQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which checkpoints; `sandbox` is the id of the one that they were taken of."""

    sandbox: Annotated[str, Meta(pattern="^[a-z0-9]{1,64}$")] | None = None
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
    """A sandbox; `parent` is the one that it was forked from, `checkpoint` what it was made of."""

    id: str
    template: str
    state: str
    created_at: str
    expires_at: str
    on_expiry: OnExpiry
    idle_timeout: float | None
    auto_resume: bool
    parent: str | None
    checkpoint: str | None
    metadata: dict[str, str]
    identity: Receipt
    timings_ms: RestoreTimes
    access_token: str | UnsetType = field(default=UNSET)


class SandboxList(Struct, frozen=True, kw_only=True):
    """Your sandboxes, newest first; `next_cursor` asks for those after them."""

    sandboxes: list[SandboxAnswer]
    next_cursor: str | None


class CheckpointAnswer(Struct, frozen=True, kw_only=True):
    """A sandbox's state, kept: what differs from the snapshot `base` of its template.

    `dirty_bytes` is the memory that differs, `size_bytes` what all of it takes on the disk. One
    that has `keep` as `disk` has no memory.
    """

    id: str
    name: str | None
    keep: Keep
    sandbox: str
    template: str
    base: str
    created_at: str
    dirty_bytes: int
    size_bytes: int


class CheckpointList(Struct, frozen=True, kw_only=True):
    """Your checkpoints, newest first; `next_cursor` asks for those after them."""

    checkpoints: list[CheckpointAnswer]
    next_cursor: str | None


class Child(Struct, frozen=True, kw_only=True):
    """What came of one child: a sandbox, or the problem in its place."""

    sandbox: SandboxAnswer | UnsetType = UNSET
    problem: Problem | UnsetType = UNSET


class ForkTimes(Struct, frozen=True, kw_only=True):
    """How long a fork took, in milliseconds."""

    total: float


class ForkAnswer(Struct, frozen=True, kw_only=True):
    """The children of a fork, as many as were asked for; at least one is a sandbox."""

    children: list[Child]
    timings_ms: ForkTimes
