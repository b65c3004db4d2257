"""Rows: images, templates and sandboxes as the journal keeps them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from vmpool.lifecycle import EndReason, SandboxState


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRow:
    """An image that is in the state directory."""

    digest: str
    name: str
    size_bytes: int
    created_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateRow:
    """A name for a snapshot, with what makes it again should the snapshot not fit any more.

    Attributes:
        limits: Fields of `policy.Limits`.
    """

    name: str
    image_digest: str
    snapshot_id: str
    limits: dict[str, Any] = field(default_factory=dict)
    memory_bytes: int
    vcpus: int
    disk_bytes: int
    created_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRow:
    """A sandbox that was promised to somebody.

    Attributes:
        clone_id: Names its directory in the run directory.
        token_id: The owner; `None` on a server without tokens.
        deadline_ns: When it ends by itself; `None` for never.
        ended_ns: Set, with `end_reason`, exactly when `state` is `ended`.
    """

    id: str
    template: str
    clone_id: str
    token_id: str | None
    state: SandboxState
    created_ns: int
    deadline_ns: int | None
    metadata: dict[str, str] = field(default_factory=dict)
    ended_ns: int | None = None
    end_reason: EndReason | None = None


def template(row: dict[str, Any]) -> TemplateRow:
    """Return a template as it was saved."""
    return TemplateRow(**row | {"limits": json.loads(row["limits"])})


def sandbox(row: dict[str, Any]) -> SandboxRow:
    """Return a sandbox as it was recorded."""
    reason = row["end_reason"]
    return SandboxRow(
        **row
        | {
            "state": SandboxState(row["state"]),
            "metadata": json.loads(row["metadata"]),
            "end_reason": None if reason is None else EndReason(reason),
        }
    )
