"""Values: what a server says of its things, as it says them.

Members are those of the interface, see docs/api.md. What a later server adds is passed over; where
it may add words to a set of them, the type here is `str`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import msgspec

from vmpool.errors import InfrastructureError

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The guest's word that its identity took, read back after setting it."""

    hostname: str
    machine_id: str
    boot_id: str
    entropy_bits: int
    generators: tuple[str, ...]
    clock_error_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxInfo:
    """A sandbox as it was when the server was asked.

    Attributes:
        expires_at: When its time is up; then it is ended, or paused where `on_expiry` is `pause`.
            Of a paused one, when that is if it is resumed now.
        idle_timeout: Seconds without work after which the same comes; `None` for never.
        auto_resume: Whether a paused one wakes when something is asked of its guest.
        parent: Id of the sandbox that it was forked from.
        checkpoint: Id of the checkpoint that it was made of.
        timings_ms: How long making it took, by phase; `acquire` is what was waited for.
        access_token: Opens this one sandbox and nothing else; only in the answer to a create.
    """

    id: str
    template: str
    state: str
    created_at: datetime
    expires_at: datetime
    on_expiry: str
    idle_timeout: float | None
    auto_resume: bool
    parent: str | None
    checkpoint: str | None
    metadata: dict[str, str]
    identity: Receipt
    timings_ms: dict[str, float]
    access_token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """What a sandbox was, kept.

    Attributes:
        name: The one that it was given, if any.
        keep: `memory` for all that it was, `disk` for what was on its disk.
        sandbox: Id of the one that it was taken of.
        base: Id of the template's snapshot that it is the difference from.
        dirty_bytes: Memory that differed.
        size_bytes: What it takes on the server's disk.
    """

    id: str
    name: str | None
    keep: str
    sandbox: str
    template: str
    base: str
    created_at: datetime
    dirty_bytes: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """One entry of a guest's file system; links are not followed.

    Attributes:
        kind: `file`, `directory`, `symlink` or `other`.
        mode: Permission bits.
        target: Where a symbolic link points, as written in it.
        resolved: The path that it leads to in the end; `None` where that is none.
        metadata: The words that its writer left with it.
    """

    path: str
    kind: str
    size_bytes: int
    mode: int
    owner: str
    group: str
    modified_at: datetime
    target: str | None
    resolved: str | None
    metadata: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolCensus:
    """Clones of one template, and those who wait for one.

    Attributes:
        aim: Spares that it keeps now.
    """

    aim: int
    ready: int
    restoring: int
    held: int
    dying: int
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLimits:
    """What a template's pool may use."""

    ready: int
    ready_most: int
    standby: int
    total: int
    queue: int
    parallel_restores: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateInfo:
    """A template: the name of a snapshot, and its pool.

    Attributes:
        state: `ready`, `building` or `failed`; `error` says why it failed.
        tenant: Whose it is alone; `None` for everybody's.
    """

    name: str
    state: str
    error: str
    image: str
    image_digest: str
    snapshot: str | None
    created_at: datetime
    memory_bytes: int
    vcpus: int
    disk_bytes: int
    accelerator: str
    limits: PoolLimits
    pool: PoolCensus
    tenant: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """A bootable image."""

    name: str
    digest: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Whether a server serves, and its version."""

    ok: bool
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxPage:
    """Some of the caller's sandboxes; `next_cursor` asks for those after them."""

    sandboxes: tuple[SandboxInfo, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPage:
    """Some of the caller's checkpoints; `next_cursor` asks for those after them."""

    checkpoints: tuple[CheckpointInfo, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkedChild:
    """What came of one child: a sandbox, or a problem document in its place."""

    sandbox: SandboxInfo | None = None
    problem: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """What came of a fork.

    Attributes:
        timings_ms: How long it took.
    """

    children: tuple[ForkedChild, ...]
    timings_ms: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageInfo:
    """What a tenant has, and what it may have: by resource, `None` for no limit."""

    tenant: str
    used: dict[str, int]
    limits: dict[str, int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedFile:
    """A URL, from the server's root on, that opens one file without a token."""

    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileListing:
    """What a directory holds."""

    entries: tuple[FileInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What became of one of several files: what it is now, or the problem that it met."""

    path: str
    file: FileInfo | None = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadListing:
    """What became of several files."""

    files: tuple[Upload, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateListing:
    """All templates."""

    templates: tuple[TemplateInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageListing:
    """All images."""

    images: tuple[ImageInfo, ...]


def read(data: bytes, kind: type[T]) -> T:
    """Return what an answer says.

    Raises:
        InfrastructureError: `not_vmpool` when it is not of that kind.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise InfrastructureError(
            f"the server's answer is no {kind.__name__}: {err}",
            code="not_vmpool",
            remedy="check the server's address, and that it is of this vmpool's version",
        ) from err
