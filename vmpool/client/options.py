"""Options: what a request may say beside what it is about, the same with asyncio and without.

Members are those of the interface, see docs/api.md. One that is left out has the server's default.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vmpool.client.values import CheckpointInfo


class TaskOptions(TypedDict, total=False):
    """What to run beside `code`, or in its place, and how.

    Attributes:
        argv: A program and its arguments, in place of code.
        language: Of the code; `python` runs in a fork of the warm interpreter.
        env: Environment variables.
        secrets: More of them, which are told to nobody and kept nowhere.
        cwd: Working directory; the account's home if left out.
        user: Account in the guest.
        timeout: Seconds until the process group is killed.
    """

    argv: Sequence[str]
    language: Literal["python", "bash"]
    env: Mapping[str, str]
    secrets: Mapping[str, str]
    cwd: str
    user: str
    timeout: float


class ExecOptions(TaskOptions, total=False):
    """As `TaskOptions`, with input that is known before.

    Attributes:
        stdin: What the program reads, to its end.
    """

    stdin: str | bytes


class CellOptions(TypedDict, total=False):
    """How to run code in a context.

    Attributes:
        env: Environment variables, for this execution alone.
        timeout: Seconds until it is interrupted.
    """

    env: Mapping[str, str]
    timeout: float


class ContextOptions(TypedDict, total=False):
    """What context to make.

    Attributes:
        language: `python` is IPython; `javascript` needs node in the image.
        env: Environment variables of all that runs in it.
        cwd: Working directory; the account's home if left out.
        user: Account in the guest.
    """

    language: Literal["python", "bash", "javascript"]
    env: Mapping[str, str]
    cwd: str
    user: str


class NetworkRule(TypedDict, total=False):
    """Whom a rule is about: a `cidr` or a `domain`.

    Attributes:
        domain: A name, or `*.` before one for all below it.
        protocol: `tcp`, `udp` or `any`, which without ports is all of IP.
        ports: Numbers, and ranges like `"8000-8100"`; all if left out.
    """

    cidr: str
    domain: str
    protocol: Literal["tcp", "udp", "any"]
    ports: Sequence[int | str]


class NetworkBandwidth(TypedDict, total=False):
    """Bytes a second that may be sent and received."""

    up: int | None
    down: int | None


class _NetworkMode(TypedDict):
    mode: Literal["none", "restricted", "open"]


class NetworkOptions(_NetworkMode, total=False):
    """What a sandbox may reach: nothing, what is allowed, or all that is not denied.

    Attributes:
        deny: Goes before `allow`.
    """

    allow: Sequence[NetworkRule]
    deny: Sequence[NetworkRule]
    bandwidth: NetworkBandwidth


class RunOptions(ExecOptions, total=False):
    """As `ExecOptions`, in a machine made for it.

    Attributes:
        template: What the machine is made of.
        files: Contents by path, written first.
        return_files: Paths to read at the end.
        wait: Seconds to wait for a machine when none is ready.
        network: What it may reach; nothing if left out.
    """

    template: str
    files: Mapping[str, str | bytes]
    return_files: Sequence[str]
    wait: float
    network: NetworkOptions


class Seed(TypedDict):
    """The number that every random generator starts from, so that what is drawn repeats."""

    seed: int


class ChildOptions(TypedDict, total=False):
    """What to make of a running sandbox or a checkpoint.

    Attributes:
        timeout: Seconds until its time is up.
        metadata: Words of yours to find it by.
        env: Environment variables of everything that runs in it; a child's own come on top of its
            parent's.
        secrets: The same, told to nobody, and sealed where the server keeps them.
        rng: Where its random numbers come from: fresh (`unique`, unless something else is said), a
            seed, or as they would have come in the parent (`preserve`).
        clock: What time it is in it: `now`, or when its state was saved (`frozen-at-snapshot`).
        network: What it may reach; as its parent if left out, or as the server says.
    """

    timeout: float
    metadata: Mapping[str, str]
    env: Mapping[str, str]
    secrets: Mapping[str, str]
    rng: Literal["unique", "preserve"] | Seed
    clock: Literal["now", "frozen-at-snapshot"]
    network: NetworkOptions


class ForkOptions(ChildOptions, total=False):
    """As `ChildOptions`, for the children of a fork.

    Attributes:
        files: Contents by path, written into each before it is yours.
    """

    files: Mapping[str, str | bytes]


class SandboxOptions(ChildOptions, total=False):
    """As `ChildOptions`, and what sandbox to make.

    Attributes:
        template: What it is made of.
        checkpoint: What it is made of in place of a template: one, its id or its name.
        wait: Seconds to wait for a machine when none is ready.
        on_expiry: What becomes of it when its time is up: `kill`, `pause`, or `pause_disk`,
            which keeps its disk alone.
        idle_timeout: Seconds without work after which the same comes.
        auto_resume: Whether it wakes from a pause when something is asked of its guest.
        public_ports: Ports of it that everybody reaches; the others are private.
    """

    template: str
    checkpoint: CheckpointInfo | str
    wait: float
    on_expiry: Literal["kill", "pause", "pause_disk"]
    idle_timeout: float
    auto_resume: bool
    public_ports: Sequence[int]


class TemplateOptions(TypedDict, total=False):
    """What machine to save under a name, and its pool.

    Attributes:
        checkpoint: Goes on in place of an image that is booted; a `Checkpoint`, its id or its name.
        limits: `ready`, `ready_most`, `standby`, `total`, `queue`, `parallel_restores`,
            `memory_bytes`.
    """

    checkpoint: CheckpointInfo | str
    memory_bytes: int
    vcpus: int
    disk_bytes: int
    limits: Mapping[str, int | None]


def body_of(code: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's body: bytes, files and checkpoints as the interface has them."""
    body = dict(options)
    if code is not None:
        body["code"] = code
    if "stdin" in body:
        body |= _content("stdin", body.pop("stdin"))
    if "checkpoint" in body:
        body["checkpoint"] = getattr(body["checkpoint"], "id", body["checkpoint"])
    if "files" in body:
        body["files"] = {path: _content("content", data) for path, data in body["files"].items()}
    return body


def _content(name: str, data: str | bytes) -> dict[str, str]:
    if isinstance(data, str):
        return {name: data}
    return {f"{name}_base64": base64.b64encode(data).decode()}
