"""Rows: images, templates, sandboxes and checkpoints as the journal keeps them."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from vmpool.lifecycle import AutoResume, EndReason, Keep, OnExpiry, SandboxState
from vmpool.model import ClockPolicy, IdentityReceipt, Preserve, Rng, Seed, Unique

if TYPE_CHECKING:
    from vmpool.trust.sealing import Sealing

log = logging.getLogger(__name__)


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
        env: Environment of everything that runs in its sandboxes, under their own.
    """

    name: str
    image_digest: str
    snapshot_id: str
    limits: dict[str, Any] = field(default_factory=dict)
    memory_bytes: int
    vcpus: int
    disk_bytes: int
    created_ns: int
    env: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxRow:
    """A sandbox that was promised to somebody, with all that makes it again from its machine.

    Attributes:
        clone_id: Names its directory in the run directory; of a paused one it is gone.
        owner: Id of the tenant whose it is.
        deadline_ns: When its time is up; `None` for never. Of a paused one it counts from
            `paused_ns`.
        ended_ns: Set, with `end_reason`, exactly when `state` is `ended`.
        base_id: Of the snapshot that its machine descends from.
        checkpoint_id: What it goes on from, exactly when `state` is `paused`; the row of the
            checkpoint is its own.
        timeout: Seconds that it was given at first.
        access_hash: SHA-256 of its access token; empty when it never had one.
        receipt: What its machine confirmed last; `None` in rows of older schemas.
        clock_offset_ns: The guest's clock minus the host's.
        parent_id: The sandbox that it was forked from.
        parent_checkpoint_id: The checkpoint that it was made from.
        ticket: Of the request that it was made for, until that was answered; empty for none.
        network: Policy of its network as JSON; empty for none.
        secrets: As `env`, but told to nobody; sealed in the file.
        confided: Its memory may hold secrets of single executions.
    """

    id: str
    template: str
    clone_id: str
    owner: str
    state: SandboxState
    created_ns: int
    deadline_ns: int | None
    metadata: dict[str, str] = field(default_factory=dict)
    ended_ns: int | None = None
    end_reason: EndReason | None = None
    base_id: str = ""
    checkpoint_id: str | None = None
    paused_ns: int | None = None
    timeout: float = 0.0
    idle_timeout: float | None = None
    on_expiry: OnExpiry = OnExpiry.KILL
    auto_resume: AutoResume = AutoResume.NEVER
    rng: Rng = field(default_factory=Unique)
    clock: ClockPolicy = ClockPolicy.NOW
    clock_offset_ns: int = 0
    env: dict[str, str] = field(default_factory=dict, repr=False)
    access_hash: bytes = field(default=b"", repr=False)
    receipt: IdentityReceipt | None = None
    parent_id: str | None = None
    parent_checkpoint_id: str | None = None
    ticket: bytes = field(default=b"", repr=False)
    network: str = ""
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    confided: bool = False


_SANDBOX_COLUMNS = tuple(field.name for field in fields(SandboxRow))


class Purpose(StrEnum):
    """What a checkpoint is there for."""

    KEPT = "kept"
    """Somebody asked for it, and removes it."""
    PAUSE = "pause"
    """A paused sandbox goes on from it, which is its end."""


class IfTaken(StrEnum):
    """What becomes of a name for a checkpoint that another one of its owner has."""

    REFUSE = "refuse"
    """It stays where it is, and nothing is kept."""
    MOVE = "move"
    """The new one has it; the other stays, and goes by its id alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointRow:
    """A state that a sandbox was in.

    Attributes:
        name: Unique among its owner's; `None` for none.
        owner: Id of the tenant whose it is.
        base_id: Of the snapshot that it is the difference from.
        agent_key: What the agent in it obeys; never shown, never logged.
        saved_ns: What the guest's clock said.
        dirty_bytes: Memory that differed from the base.
        size_bytes: Of its files.
        env: Environment of everything that ran in the sandbox.
        network: Policy of its network; `secrets` and `confided` likewise, as in `SandboxRow`.
        keep: What of the sandbox it is.
    """

    id: str
    purpose: Purpose
    name: str | None
    owner: str
    sandbox_id: str
    template: str
    base_id: str
    agent_key: bytes = field(repr=False)
    created_ns: int
    saved_ns: int
    dirty_bytes: int
    size_bytes: int
    env: dict[str, str] = field(default_factory=dict, repr=False)
    network: str = ""
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    confided: bool = False
    keep: Keep = Keep.MEMORY


def template(row: dict[str, Any]) -> TemplateRow:
    """Return a template as it was saved."""
    decoded = {name: json.loads(row[name]) for name in ("limits", "env")}
    return TemplateRow(**row | decoded)


def sandbox(row: dict[str, Any], sealing: Sealing) -> SandboxRow:
    """Return a sandbox as it was recorded."""
    reason = row["end_reason"]
    return SandboxRow(
        **row
        | {
            "state": SandboxState(row["state"]),
            "metadata": json.loads(row["metadata"]),
            "end_reason": None if reason is None else EndReason(reason),
            "on_expiry": OnExpiry(row["on_expiry"]),
            "auto_resume": AutoResume(row["auto_resume"]),
            "rng": _rng(row["rng"]),
            "clock": ClockPolicy(row["clock"]),
            "env": json.loads(row["env"]),
            "receipt": _receipt(row["receipt"]),
            "secrets": _unsealed(row, sealing),
            "confided": bool(row["confided"]),
        }
    )


def sandbox_columns(sandbox: SandboxRow, sealing: Sealing) -> dict[str, Any]:
    """Return a sandbox as it is recorded."""
    return {name: getattr(sandbox, name) for name in _SANDBOX_COLUMNS} | {
        "metadata": json.dumps(sandbox.metadata),
        "env": json.dumps(sandbox.env),
        "rng": _rng_text(sandbox.rng),
        "receipt": receipt_text(sandbox.receipt),
        "secrets": sealing.seal(sandbox.secrets, of=sandbox.id),
    }


def checkpoint(row: dict[str, Any], sealing: Sealing) -> CheckpointRow:
    """Return a checkpoint as it was recorded."""
    return CheckpointRow(
        **row
        | {
            "purpose": Purpose(row["purpose"]),
            "keep": Keep(row["keep"]),
            "env": json.loads(row["env"]),
            "secrets": _unsealed(row, sealing),
            "confided": bool(row["confided"]),
        }
    )


def checkpoint_columns(checkpoint: CheckpointRow, sealing: Sealing) -> dict[str, Any]:
    """Return a checkpoint as it is recorded."""
    return asdict(checkpoint) | {
        "env": json.dumps(checkpoint.env),
        "secrets": sealing.seal(checkpoint.secrets, of=checkpoint.id),
    }


def receipt_text(receipt: IdentityReceipt | None) -> str | None:
    """Return a receipt as it is recorded."""
    return None if receipt is None else json.dumps(asdict(receipt))


def _unsealed(row: dict[str, Any], sealing: Sealing) -> dict[str, str]:
    """Return what was sealed; what belongs to it goes on without when it cannot be opened."""
    values = sealing.unseal(row["secrets"], of=row["id"])
    if values is None:
        log.error("the secrets of %s were sealed with another key, and are lost", row["id"])
    return values or {}


def _receipt(text: str | None) -> IdentityReceipt | None:
    if text is None:
        return None
    members = json.loads(text)
    return IdentityReceipt(**members | {"generators": tuple(members["generators"])})


def _rng_text(rng: Rng) -> str:
    match rng:
        case Unique():
            return "unique"
        case Seed(value=value):
            return f"seed={value}"
        case Preserve():
            return "preserve"


def _rng(text: str) -> Rng:
    if text == "unique":
        return Unique()
    if text == "preserve":
        return Preserve()
    return Seed(value=int(text.removeprefix("seed=")))
