"""Answers: what QEMU may say, as far as anybody here reads it.

A guest that has taken over its QEMU answers for it. What is not of the form that QEMU's schema
promises is refused here, so that whoever asked need not doubt the form of what it gets; whether it
is true, nobody can tell. Of the members of an answer only those that are read stand here, and no
others come through.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
from msgspec import Meta

from vmpool.errors import EngineError

_LONGEST_ERROR = 300


class Status(TypedDict):
    status: str
    running: bool


class _Descriptor(TypedDict):
    fd: int


_Set = TypedDict("_Set", {"fdset-id": int})


class _Job(TypedDict):
    id: str


_Node = TypedDict("_Node", {"node-name": str, "file": str})
_Inserted = TypedDict("_Inserted", {"node-name": NotRequired[str], "backing_file_depth": int})


class _Drive(TypedDict):
    inserted: NotRequired[_Inserted]


_Cpu = TypedDict("_Cpu", {"qom-path": str})
_Definition = TypedDict(
    "_Definition", {"name": str, "unavailable-features": NotRequired[list[str]]}
)


class _Model(TypedDict):
    props: dict[str, Any]


class _Expansion(TypedDict):
    model: _Model


_Migration = TypedDict("_Migration", {"error-desc": NotRequired[str]})

_SHAPES: dict[str, Any] = {
    "add-fd": _Descriptor,
    "query-block": list[_Drive],
    "query-cpu-definitions": list[_Definition],
    "query-cpu-model-expansion": _Expansion,
    "query-cpus-fast": Annotated[list[_Cpu], Meta(min_length=1)],
    "query-fdsets": list[_Set],
    "query-jobs": list[_Job],
    "query-migrate": _Migration,
    "query-named-block-nodes": list[_Node],
    "query-status": Status,
}
"""By command; the answers of others nobody reads."""


class _Progress(TypedDict):
    status: str


class _Reason(TypedDict):
    reason: NotRequired[str]


class _Change(TypedDict):
    id: str
    status: str


class _End(TypedDict):
    device: str
    error: NotRequired[str]


_EVENT_SHAPES: dict[str, Any] = {
    "BLOCK_JOB_CANCELLED": _End,
    "BLOCK_JOB_COMPLETED": _End,
    "JOB_STATUS_CHANGE": _Change,
    "MIGRATION": _Progress,
    "SHUTDOWN": _Reason,
}
"""Of an event's `data`, likewise."""


def checked(command: str, answer: Any) -> Any:
    """Return what is read of an answer.

    Raises:
        EngineError: It is not of the form that QEMU's schema promises; code `qmp_malformed`.
    """
    shape = _SHAPES.get(command)
    if shape is None:
        return answer
    try:
        return msgspec.convert(answer, shape)
    except (msgspec.ValidationError, RecursionError) as err:
        raise malformed(command, str(err)) from err


def malformed(command: str, why: str) -> EngineError:
    """Return the error for an answer that QEMU does not give."""
    return EngineError(
        f"QEMU answered {command!r} as it never does: {why[:_LONGEST_ERROR]}", code="qmp_malformed"
    )


def is_event(name: object, data: object) -> bool:
    """Tell whether an event is of the form that QEMU's schema promises."""
    if not isinstance(name, str):
        return False
    try:
        msgspec.convert(data, _EVENT_SHAPES.get(name, Any))
    except (msgspec.ValidationError, RecursionError):
        return False
    return True
