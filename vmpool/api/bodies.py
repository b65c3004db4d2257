"""Bodies: every JSON object that the HTTP API takes or gives, and nothing else.

The types are the interface: requests are decoded into them, answers are encoded from them, and
`/openapi.json` is generated from them. They check form only; what depends on settings is checked
by `limits`, what depends on the world by the host.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from vmpool.api.network_bodies import Network
from vmpool.model import DEFAULT_USER

_NO_NUL = "^[^\\u0000]*$"
Base64 = Annotated[
    bytes,
    Meta(
        extra_json_schema={
            "pattern": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
        }
    ),
]

Name = Annotated[
    str,
    Meta(
        description="A template's name, perhaps with a tag behind a colon",
        min_length=1,
        max_length=128,
        pattern="^[a-z0-9][a-z0-9._-]*(:[a-z0-9][a-z0-9._-]*)?$",
    ),
]
GuestPath = Annotated[
    str,
    Meta(
        description="Absolute path in the guest, without `..`",
        extra_json_schema={
            "pattern": r"^/(?!\.\.(?:/|$))(?:[^\u0000/]|/(?!\.\.(?:/|$)))*$",
            "maxLength": 4095,
        },
    ),
]
Account = Annotated[
    str, Meta(description="Account in the guest", pattern="^[^\\u0000-\\u0020:/]{1,64}$")
]
Env = Annotated[
    dict[
        Annotated[str, Meta(min_length=1, max_length=1024, pattern="^[^=\\u0000]+$")],
        Annotated[str, Meta(pattern=_NO_NUL)],
    ],
    Meta(description="Environment variables", max_length=512),
]
Argv = Annotated[
    list[Annotated[str, Meta(pattern=_NO_NUL)]],
    Meta(description="Program and arguments", min_length=1, max_length=4096),
]
Metadata = Annotated[
    dict[
        Annotated[str, Meta(min_length=1, max_length=128, pattern="^[^=\\u0000]+$")],
        Annotated[str, Meta(max_length=1024)],
    ],
    Meta(description="Words of your own, to find sandboxes by", max_length=64),
]
Seconds = Annotated[float, Meta(gt=0)]
FileMode = Annotated[int, Meta(ge=0, le=0o7777, description="Permission bits, as a number")]
Language = Literal["python", "bash"]


class FileContent(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file's content: `content` for text, `content_base64` for anything; exactly one."""

    content: str | None = None
    content_base64: Base64 | None = None


class Run(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to run in a virtual machine made for it; exactly one of `code` and `argv`."""

    template: Name = "python"
    code: Annotated[str, Meta(pattern=_NO_NUL)] | None = None
    argv: Argv | None = None
    language: Language = "python"
    stdin: str | None = None
    stdin_base64: Base64 | None = None
    files: dict[GuestPath, FileContent] = {}
    return_files: Annotated[list[GuestPath], Meta(max_length=256)] = []
    env: Env = {}
    secrets: Env = {}
    cwd: GuestPath | None = None
    user: Account = DEFAULT_USER
    timeout: Seconds | None = None
    wait: Annotated[float, Meta(ge=0)] | None = None
    network: Network | None = None


class Exec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to run in a sandbox; exactly one of `code` and `argv`."""

    code: Annotated[str, Meta(pattern=_NO_NUL)] | None = None
    argv: Argv | None = None
    language: Language = "python"
    stdin: str | None = None
    stdin_base64: Base64 | None = None
    env: Env = {}
    secrets: Env = {}
    cwd: GuestPath | None = None
    user: Account = DEFAULT_USER
    timeout: Seconds | None = None


class MakeDirectory(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A directory to make, with its parents."""

    path: GuestPath
    user: Account = DEFAULT_USER


class MoveFile(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to move, and where to."""

    source: GuestPath
    destination: GuestPath
    user: Account = DEFAULT_USER


class PoolLimits(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a template's pool may use; what is left out has the default."""

    ready: Annotated[int, Meta(ge=0, le=4096)] | UnsetType = UNSET
    ready_most: Annotated[int, Meta(ge=0, le=4096)] | UnsetType = UNSET
    standby: Annotated[int, Meta(ge=0, le=256)] | UnsetType = UNSET
    total: Annotated[int, Meta(ge=1, le=4096)] | UnsetType = UNSET
    queue: Annotated[int, Meta(ge=0, le=65536)] | UnsetType = UNSET
    parallel_restores: Annotated[int, Meta(ge=1, le=256)] | UnsetType = UNSET
    memory_bytes: Annotated[int, Meta(ge=1, le=2**53)] | UnsetType | None = UNSET


class CreateTemplate(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A template to make: of an image, which is booted, warmed and saved, or of a checkpoint.

    A checkpoint's machine has the size that it had.
    """

    name: Name
    image: Annotated[str, Meta(min_length=1, max_length=256, pattern=_NO_NUL)] | None = None
    checkpoint: Annotated[str, Meta(min_length=1, max_length=128, pattern=_NO_NUL)] | None = None
    memory_bytes: Annotated[int, Meta(ge=1 << 26, le=2**53)] | None = None
    vcpus: Annotated[int, Meta(ge=1, le=255)] | None = None
    disk_bytes: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    limits: PoolLimits | None = None


class Nothing(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """No query parameters."""


class FileQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which file, and as whom."""

    path: GuestPath
    user: Account = DEFAULT_USER


class ListFilesQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which directory, as whom, and how many levels deep."""

    path: GuestPath
    user: Account = DEFAULT_USER
    depth: Annotated[int, Meta(ge=1, le=64)] = 1


class Receipt(Struct, frozen=True, kw_only=True):
    """The guest's word that its identity took, read back after setting it."""

    hostname: str
    machine_id: str
    boot_id: str
    entropy_bits: int
    generators: list[str]
    clock_error_ms: float


class RunTimes(Struct, frozen=True, kw_only=True):
    """How long each phase of a run took, in milliseconds."""

    acquire: float
    upload: float
    first_output: float | None
    execute: float
    collect: float
    total: float


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request failed, whose fault it is and what to do (RFC 9457).

    `kind` is a code as well, wider than `code`, of the few that failures are sorted by. `limits`
    are those that it is about, and `used` how much of a quota is; `retry_after` is in seconds, as
    the header.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    kind: str
    fault: Literal["caller", "task", "capacity", "infrastructure"]
    request_id: str
    remedy: str = ""
    limits: dict[str, float] = {}
    used: dict[str, float] = {}
    retry_after: int | None = None


class CollectedFile(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file that was asked for: `content` when it is UTF-8, else `content_base64`, or `error`."""

    content: str | UnsetType = UNSET
    content_base64: bytes | UnsetType = UNSET
    error: FileFailure | UnsetType = UNSET


class FileFailure(Struct, frozen=True, kw_only=True):
    """Why a file could not be had."""

    code: str
    detail: str


class ErrorRaised(Struct, frozen=True, kw_only=True):
    """The exception that ended the code."""

    name: str
    value: str
    traceback: str


class RunAnswer(Struct, frozen=True, kw_only=True):
    """What came of a run.

    A task that fails is no failed request: look at `fault`. `stdout` and `stderr` are always
    readable text; where the bytes were not UTF-8, the exact bytes are beside it in base64.
    """

    id: str
    stdout: str
    stderr: str
    exit_code: int | None
    signal: int | None
    timed_out: bool
    out_of_memory: bool
    fault: Literal["task"] | None
    truncated: bool
    results: list[dict[str, str]]
    error: ErrorRaised | None
    files: dict[str, CollectedFile]
    timings_ms: RunTimes
    identity: Receipt
    stdout_base64: bytes | UnsetType = UNSET
    stderr_base64: bytes | UnsetType = UNSET


class Started(Struct, frozen=True, kw_only=True, tag="started", tag_field="type"):
    """The first line: the process runs, and leads its own group.

    In a context `execution_count` says how many its interpreter was given, this one included.
    """

    pid: int
    execution_count: int | UnsetType = UNSET


class Stdout(Struct, frozen=True, kw_only=True, tag="stdout", tag_field="type"):
    """Output: `data` is whole UTF-8 characters; bytes that are none come as `data_base64`."""

    data: str | UnsetType = UNSET
    data_base64: bytes | UnsetType = UNSET


class Stderr(Struct, frozen=True, kw_only=True, tag="stderr", tag_field="type"):
    """Error output, as in `stdout`."""

    data: str | UnsetType = UNSET
    data_base64: bytes | UnsetType = UNSET


class Pty(Struct, frozen=True, kw_only=True, tag="pty", tag_field="type"):
    """What a program wrote to its terminal, as in `stdout`."""

    data: str | UnsetType = UNSET
    data_base64: bytes | UnsetType = UNSET


class ShownResult(Struct, frozen=True, kw_only=True, tag="result", tag_field="type"):
    """A value that the code showed; binary forms are base64.

    `is_main` is said of the value of the last expression. A later result with the same `display_id`
    takes this one's place.
    """

    mime: dict[str, str]
    is_main: bool = False
    display_id: str | UnsetType = UNSET


class RaisedLine(Struct, frozen=True, kw_only=True, tag="error", tag_field="type"):
    """The exception that ended the code."""

    name: str
    value: str
    traceback: str


class ExitLine(Struct, frozen=True, kw_only=True, tag="exit", tag_field="type"):
    """The last line of a run that came to its end.

    `context_lost` says that the interpreter of a context ended with it, and its state with that.
    """

    exit_code: int | None
    signal: int | None
    timed_out: bool
    out_of_memory: bool
    fault: Literal["task"] | None
    duration_ms: float
    context_lost: Literal[True] | UnsetType = UNSET


class ProblemLine(Struct, frozen=True, kw_only=True, tag="problem", tag_field="type"):
    """The last line of a run that we broke off: the sandbox ended, or the guest was lost."""

    problem: Problem


ExecLine = Started | Stdout | Stderr | Pty | ShownResult | RaisedLine | ExitLine | ProblemLine


class Input(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A WebSocket message to a running process: exactly one member is set."""

    stdin: str | None = None
    stdin_base64: Base64 | None = None
    eof: Literal[True] | None = None
    signal: Annotated[int, Meta(ge=1, le=64)] | None = None


class FileEntry(Struct, frozen=True, kw_only=True):
    """One entry of the guest's file system; links are not followed.

    `resolved` is the path that a link leads to in the end, null where that is none.
    """

    path: str
    kind: Literal["file", "directory", "symlink", "other"]
    size_bytes: int
    mode: int
    owner: str
    group: str
    modified_at: str
    target: str | None
    resolved: str | None
    metadata: dict[str, str]


class FileList(Struct, frozen=True, kw_only=True):
    """What a directory holds, in lexical order, parents first."""

    entries: list[FileEntry]


class PoolAnswer(Struct, frozen=True, kw_only=True):
    """Clones of one template now, and how many spares there are to be."""

    aim: int
    ready: int
    restoring: int
    held: int
    dying: int
    waiting: int


class LimitsAnswer(Struct, frozen=True, kw_only=True):
    """What a template's pool may use."""

    ready: int
    ready_most: int
    standby: int
    total: int
    queue: int
    parallel_restores: int
    memory_bytes: int | None


class TemplateQuery(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose; left out, your tenant's own goes before everybody's. Others' are for operators."""

    tenant: Annotated[str, Meta(pattern="^[a-z0-9]{1,64}$")] | None = None


class TemplateAnswer(Struct, frozen=True, kw_only=True):
    """A template: the name of a snapshot, and its pool; `tenant` is null for everybody's."""

    name: str
    tenant: str | None
    state: Literal["ready", "building", "failed"]
    error: str
    image: str
    image_digest: str
    snapshot: str | None
    created_at: str
    memory_bytes: int
    vcpus: int
    disk_bytes: int
    accelerator: str
    limits: LimitsAnswer
    pool: PoolAnswer


class BaseAnswer(Struct, frozen=True, kw_only=True):
    """A snapshot without a template; `size_bytes` is what it takes on the disk."""

    id: str
    size_bytes: int


class TemplateList(Struct, frozen=True, kw_only=True):
    """All templates, by name.

    `bases` are the snapshots of templates that are gone, kept for sandboxes and checkpoints.
    """

    templates: list[TemplateAnswer]
    bases: list[BaseAnswer]


class ImageAnswer(Struct, frozen=True, kw_only=True):
    """A bootable image."""

    name: str
    digest: str
    size_bytes: int


class ImageList(Struct, frozen=True, kw_only=True):
    """All images, by name."""

    images: list[ImageAnswer]


class Health(Struct, frozen=True, kw_only=True):
    """Whether the server serves."""

    ok: bool
    version: str


class PublishedLimits(Struct, frozen=True, kw_only=True):
    """What a request may ask for; sizes in bytes, times in seconds.

    `returned_files_bytes` is for all files that a run returns together, `output_bytes` for its
    stdout and stderr together and for its results together; `arguments_bytes` is for arguments and
    environment together, `argument_bytes` for each of them.
    """

    body_bytes: int
    body_seconds: float
    file_bytes: int
    output_bytes: int
    returned_files_bytes: int
    execution_seconds: float
    execution_seconds_default: float
    sandbox_seconds: float
    sandbox_seconds_default: float
    wait_seconds: float
    wait_seconds_default: float
    children: int
    stall_seconds: float
    path_bytes: int
    argument_bytes: int
    arguments_bytes: int
    code_bytes: int
    message_bytes: int
