"""Options: what a request may say beside what it is about, the same with asyncio and without.

Members are those of the interface, see docs/api.md. One that is left out has the server's default.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class TaskOptions(TypedDict, total=False):
    """What to run beside `code`, or in its place, and how.

    Attributes:
        argv: A program and its arguments, in place of code.
        language: Of the code; `python` runs in a fork of the warm interpreter.
        env: Environment variables.
        cwd: Working directory; the account's home if left out.
        user: Account in the guest.
        timeout: Seconds until the process group is killed.
    """

    argv: Sequence[str]
    language: Literal["python", "bash"]
    env: Mapping[str, str]
    cwd: str
    user: str
    timeout: float


class ExecOptions(TaskOptions, total=False):
    """As `TaskOptions`, with input that is known before.

    Attributes:
        stdin: What the program reads, to its end.
    """

    stdin: str | bytes


class RunOptions(ExecOptions, total=False):
    """As `ExecOptions`, in a machine made for it.

    Attributes:
        template: What the machine is made of.
        files: Contents by path, written first.
        return_files: Paths to read at the end.
        wait: Seconds to wait for a machine when none is ready.
    """

    template: str
    files: Mapping[str, str | bytes]
    return_files: Sequence[str]
    wait: float


class SandboxOptions(TypedDict, total=False):
    """What sandbox to make.

    Attributes:
        template: What it is made of.
        timeout: Seconds until it is killed.
        metadata: Words of yours to find it by.
        env: Environment variables of everything that runs in it.
        wait: Seconds to wait for a machine when none is ready.
    """

    template: str
    timeout: float
    metadata: Mapping[str, str]
    env: Mapping[str, str]
    wait: float


class TemplateOptions(TypedDict, total=False):
    """What machine to save under a name, and its pool.

    Attributes:
        limits: `ready`, `total`, `queue`, `parallel_restores`, `memory_bytes`.
    """

    memory_bytes: int
    vcpus: int
    disk_bytes: int
    limits: Mapping[str, int | None]


def body_of(code: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's body: bytes and files as the interface has them."""
    body = dict(options)
    if code is not None:
        body["code"] = code
    if "stdin" in body:
        body |= _content("stdin", body.pop("stdin"))
    if "files" in body:
        body["files"] = {path: _content("content", data) for path, data in body["files"].items()}
    return body


def _content(name: str, data: str | bytes) -> dict[str, str]:
    if isinstance(data, str):
        return {name: data}
    return {f"{name}_base64": base64.b64encode(data).decode()}
