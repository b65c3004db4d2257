"""Bodies: what E2B's clients say about templates, and what they are told."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

_NO_NUL = "^[^\\u0000]*$"

Reference = Annotated[str, Meta(min_length=1, max_length=256, pattern=_NO_NUL)]
Tag = Annotated[str, Meta(min_length=1, max_length=64, pattern="^[a-z0-9][a-z0-9._-]*$")]
Tags = Annotated[list[Tag], Meta(max_length=16)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Line = Annotated[str, Meta(max_length=1 << 17, pattern=_NO_NUL)]
Status = Literal["waiting", "building", "ready", "error"]


class Nothing(Struct, frozen=True, kw_only=True):
    """No members that count."""


class NewBuild(Struct, frozen=True, kw_only=True, rename="camel"):
    """A template to be built: its name, perhaps with a tag, and more tags."""

    name: Reference | None = None
    alias: Reference | None = None
    tags: Tags = []
    cpu_count: Annotated[int, Meta(ge=1, le=64)] | None = None
    memory_mb: Annotated[int, Meta(ge=128, le=1 << 20)] | None = field(
        default=None, name="memoryMB"
    )


class BuildMade(Struct, frozen=True, kw_only=True):
    """A build that was promised."""

    template_id: str = field(name="templateID")
    build_id: str = field(name="buildID")
    names: list[str]
    tags: list[str]
    aliases: list[str]
    public: bool = False


class Archive(Struct, frozen=True, kw_only=True):
    """Where the files of a step are sent to, and whether they are there."""

    present: bool
    url: str


class WireStep(Struct, frozen=True, kw_only=True, rename="camel"):
    """One step."""

    type: Annotated[str, Meta(max_length=16)]
    args: Annotated[list[Line], Meta(max_length=1024)] = []
    files_hash: Digest | None = None
    force: bool = False


class BuildSteps(Struct, frozen=True, kw_only=True, rename="camel"):
    """What a template is built of."""

    from_image: Reference | None = None
    from_template: Reference | None = None
    force: bool = False
    steps: Annotated[list[WireStep], Meta(max_length=256)] = []
    start_cmd: Line | None = None
    ready_cmd: Line | None = None


class StatusQuery(Struct, frozen=True, kw_only=True):
    """From which entry of the log on, and how many of them at most."""

    logs_offset: Annotated[int, Meta(ge=0)] = field(default=0, name="logsOffset")
    limit: Annotated[int, Meta(ge=1, le=100)] = 100


class LogEntry(Struct, frozen=True, kw_only=True):
    """One line of a build's log."""

    timestamp: str
    message: str
    level: Literal["debug", "info", "warn", "error"]
    step: str | UnsetType = UNSET


class Reason(Struct, frozen=True, kw_only=True):
    """Why a build failed, and in which step."""

    message: str
    step: str | UnsetType = UNSET


class BuildStatus(Struct, frozen=True, kw_only=True):
    """Where a build is."""

    template_id: str = field(name="templateID")
    build_id: str = field(name="buildID")
    status: Status
    log_entries: list[LogEntry] = field(name="logEntries")
    logs: list[str] = []
    reason: Reason | UnsetType = UNSET


class Alias(Struct, frozen=True, kw_only=True):
    """What a name stands for."""

    template_id: str = field(name="templateID")
    public: bool


class AssignTags(Struct, frozen=True, kw_only=True):
    """More tags for what has a name, perhaps with a tag."""

    target: Reference
    tags: Annotated[Tags, Meta(min_length=1)]


class RemoveTags(Struct, frozen=True, kw_only=True):
    """Tags that a template is to have no more."""

    name: Reference
    tags: Annotated[Tags, Meta(min_length=1)]


class AssignedTags(Struct, frozen=True, kw_only=True):
    """Which build has got which tags."""

    tags: list[str]
    build_id: str = field(name="buildID")


class TagAnswer(Struct, frozen=True, kw_only=True):
    """One tag of a template."""

    tag: str
    build_id: str = field(name="buildID")
    created_at: str = field(name="createdAt")


class TemplateAnswer(Struct, frozen=True, kw_only=True):
    """One template."""

    template_id: str = field(name="templateID")
    build_id: str = field(name="buildID")
    cpu_count: int = field(name="cpuCount")
    memory_mb: int = field(name="memoryMB")
    disk_mb: int = field(name="diskSizeMB")
    public: bool
    aliases: list[str]
    names: list[str]
    created_at: str = field(name="createdAt")
    updated_at: str = field(name="updatedAt")
    created_by: None = field(default=None, name="createdBy")
    last_spawned_at: None = field(default=None, name="lastSpawnedAt")
    spawn_count: int = field(default=0, name="spawnCount")
    build_count: int = field(default=1, name="buildCount")
    envd_version: str = field(name="envdVersion")
    build_status: Status = field(name="buildStatus")
