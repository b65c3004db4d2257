"""Bodies: the JSON objects of E2B's control plane, as far as they mean anything here.

What a client sends beside them is passed over; what would mean something and is not there is named,
so that it can be refused in words.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from vmpool.api.bodies import Env, Metadata

Seconds = Annotated[int, Meta(ge=0, le=10**9)]
Reference = Annotated[str, Meta(min_length=1, max_length=256)]
Hosts = Annotated[list[Annotated[str, Meta(max_length=256)]], Meta(max_length=256)]
Token = Annotated[str, Meta(pattern="^[0-9]{1,20}-[a-z0-9]{1,64}$")]
Page = Annotated[int, Meta(ge=1, le=100)]

ENVD_VERSION: Final = "0.6.13"
"""Of E2B's agent, which answers as this does; clients switch on by it what they ask for."""

CLIENT_ID: Final = "vmpool"
DEFAULT_SECONDS: Final = 300
FORK_SECONDS: Final = 15


class NetworkRules(Struct, frozen=True, kw_only=True, rename="camel"):
    """What a sandbox may reach, and who may reach it; what has the type `Any` is not there."""

    allow_out: Hosts | None = None
    deny_out: Hosts | None = None
    allow_public_traffic: bool | None = None
    rules: Any = None
    mask_request_host: Any = None
    https_ports: Any = None
    dns_servers: Any = None
    egress_proxy: Any = None


class NetworkUpdate(NetworkRules, frozen=True, kw_only=True, rename="camel"):
    """The same for a sandbox that runs; what is left out is cleared."""

    allow_internet_access: bool | None = field(name="allow_internet_access", default=None)


class Resumption(Struct, frozen=True, kw_only=True):
    """Whether a paused sandbox wakes when something is asked of it."""

    enabled: bool = False


class NewSandbox(Struct, frozen=True, kw_only=True, rename="camel"):
    """What sandbox to make; `iam`, `mcp` and mounts are refused unless they are empty."""

    template: Reference = field(name="templateID", default="base")
    timeout: Seconds = DEFAULT_SECONDS
    metadata: Metadata | None = None
    env: Env | None = field(name="envVars", default=None)
    allow_internet_access: bool | None = field(name="allow_internet_access", default=None)
    auto_pause: bool = False
    auto_pause_memory: bool | None = None
    auto_resume: Resumption | None = None
    network: NetworkRules | None = None
    mcp: Any = None
    iam: Any = None
    volume_mounts: list[Any] | None = None


class Connect(Struct, frozen=True, kw_only=True):
    """How to come back to a sandbox; its time is only made longer."""

    timeout: Seconds = DEFAULT_SECONDS
    memory: bool | None = None


class Timeout(Struct, frozen=True, kw_only=True):
    """Seconds from now until a sandbox's time is up."""

    timeout: Seconds


class Refresh(Struct, frozen=True, kw_only=True):
    """Seconds that a sandbox has at least from now on."""

    duration: Seconds = FORK_SECONDS


class Pause(Struct, frozen=True, kw_only=True):
    """How to pause: with its memory, or its files alone."""

    memory: bool | None = None


class NewSnapshot(Struct, frozen=True, kw_only=True):
    """What to keep of a sandbox: under a name, with a tag or without, or under none."""

    name: Reference | None = None
    memory: bool | None = None


class Fork(Struct, frozen=True, kw_only=True):
    """How many go on where a sandbox is, and for how long."""

    timeout: Seconds = FORK_SECONDS
    count: Annotated[int, Meta(ge=1, le=4096)] = 1


class Nothing(Struct, frozen=True, kw_only=True):
    """A query that says nothing."""


class SandboxesQuery(Struct, frozen=True, kw_only=True, rename="camel"):
    """Which sandboxes; what is given more than once must all be so."""

    metadata: Annotated[str, Meta(max_length=16384)] = ""
    state: Annotated[str, Meta(max_length=64)] = ""
    order: Literal["asc", "desc"] = "desc"
    started_after: Annotated[str, Meta(max_length=64)] | None = None
    template: Reference | None = None
    limit: Page = 100
    next_token: Token | None = None


class SnapshotsQuery(Struct, frozen=True, kw_only=True, rename="camel"):
    """Which snapshots."""

    sandbox: Reference | None = field(name="sandboxID", default=None)
    name: Reference | None = None
    limit: Page = 100
    next_token: Token | None = None


class MetricsQuery(Struct, frozen=True, kw_only=True):
    """Between which times, in Unix seconds."""

    start: Annotated[int, Meta(ge=0)] | None = None
    end: Annotated[int, Meta(ge=0)] | None = None


class SandboxAnswer(Struct, frozen=True, kw_only=True, rename="camel"):
    """A sandbox for whoever may do all with it."""

    template: str = field(name="templateID")
    id: str = field(name="sandboxID")
    client: str = field(name="clientID", default=CLIENT_ID)
    envd_version: str = ENVD_VERSION
    envd_access_token: str | None
    traffic_access_token: str | None
    domain: str | None
    alias: str | None = None


class Lifecycle(Struct, frozen=True, kw_only=True, rename="camel"):
    """What becomes of a sandbox whose time is up, and whether it wakes again."""

    auto_resume: bool
    on_timeout: Literal["kill", "pause"]


class Listed(Struct, frozen=True, kw_only=True, rename="camel"):
    """A sandbox in a list."""

    template: str = field(name="templateID")
    id: str = field(name="sandboxID")
    client: str = field(name="clientID", default=CLIENT_ID)
    alias: str | None
    started_at: str
    end_at: str
    cpu_count: int
    memory_mb: int = field(name="memoryMB")
    disk_size_mb: int = field(name="diskSizeMB")
    state: Literal["running", "paused"]
    metadata: dict[str, str]
    envd_version: str = ENVD_VERSION


class Detail(Listed, frozen=True, kw_only=True, rename="camel"):
    """A sandbox as it is."""

    envd_access_token: str | None
    allow_internet_access: bool
    domain: str | None
    lifecycle: Lifecycle
    pause_mode: Literal["full", "filesystem"]
    network: NetworkShown


class NetworkShown(Struct, frozen=True, kw_only=True, rename="camel"):
    """What a sandbox may reach, and whether everybody may reach its ports."""

    allow_out: list[str]
    deny_out: list[str]
    allow_public_traffic: bool


class Failure(Struct, frozen=True, kw_only=True):
    """Why there is none."""

    code: int
    message: str


class Forked(Struct, frozen=True, kw_only=True):
    """What came of one child."""

    sandbox: SandboxAnswer | UnsetType = UNSET
    error: Failure | UnsetType = UNSET


class SnapshotAnswer(Struct, frozen=True, kw_only=True):
    """What was kept; `id` may stand where a template's name does."""

    id: str = field(name="snapshotID")
    names: list[str]


class Metric(Struct, frozen=True, kw_only=True, rename="camel"):
    """What a guest used at one time; sizes in bytes."""

    timestamp: str
    timestamp_unix: int
    cpu_count: int
    cpu_used_pct: float
    mem_used: int
    mem_total: int
    mem_cache: int
    disk_used: int
    disk_total: int
