"""Holding: a sandbox with what watches it, and how both stand in the journal.

It holds and translates; when a sandbox ends, and what is done with it, others decide.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from vmpool import egress
from vmpool.clone import Clone
from vmpool.lifecycle import SandboxState
from vmpool.pool import Pool
from vmpool.quota import Usage
from vmpool.sandbox import Claim, Past, Sandbox, paused
from vmpool.store import SandboxRow

NOTHING = Usage()
ONE_SANDBOX = Usage(sandboxes=1)


@dataclass(slots=True, eq=False, kw_only=True)
class Holding:
    """A sandbox with what watches it.

    Attributes:
        base_id: Of the snapshot that its machines descend from.
        pool: Where its machine counts; `None` while it has none.
        share: What its machine counts as in its owner's quota, while there is one.
        journaled: The journal has a row of it, or may have.
        lock: Held by the operation on its machine.
        operation: The one that is under way.
        ending: Reaps it; `None` while it lives.
        overdue_since: When its time was up and it was to be paused, on the monotonic clock; `None`
            when it has time, or is.
    """

    sandbox: Sandbox
    base_id: str
    pool: Pool[Clone] | None
    share: Usage = ONE_SANDBOX
    journaled: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    operation: asyncio.Task[Any] | None = None
    watch: asyncio.Task[None] | None = None
    idle: asyncio.Task[None] | None = None
    alarm: asyncio.TimerHandle | None = None
    ending: asyncio.Task[None] | None = None
    overdue_since: float | None = None

    @property
    def usage(self) -> Usage:
        """What it counts as in its owner's quota; of a paused one the vault counts the files."""
        return NOTHING if self.pool is None else self.share

    def running(self) -> Sandbox:
        """Return the sandbox when it has a machine; an operation finds it paused or so.

        Raises:
            ConflictError: `sandbox_paused`.
        """
        if self.sandbox.state is not SandboxState.RUNNING:
            raise paused(self.sandbox.id)
        return self.sandbox

    @property
    def row(self) -> SandboxRow:
        """What is recorded of it when it is made."""
        sandbox, claim = self.sandbox, self.sandbox.claim
        return SandboxRow(
            id=sandbox.id,
            template=sandbox.template,
            clone_id=sandbox.clone.id,
            owner=sandbox.owner,
            state=sandbox.state,
            created_ns=sandbox.created_ns,
            deadline_ns=sandbox.deadline_ns,
            metadata=sandbox.metadata,
            base_id=self.base_id,
            timeout=claim.timeout,
            idle_timeout=claim.idle_timeout,
            on_expiry=claim.on_expiry,
            auto_resume=claim.auto_resume,
            rng=claim.rng,
            clock=claim.clock,
            clock_offset_ns=sandbox.clock_offset_ns,
            env=claim.env,
            secrets=claim.secrets,
            confided=claim.confided,
            access_hash=sandbox.access_hash,
            receipt=sandbox.receipt,
            parent_id=claim.parent_id,
            parent_checkpoint_id=claim.parent_checkpoint_id,
            ticket=claim.ticket,
            network=egress.text(claim.network),
        )


def recalled(row: SandboxRow, clone: Clone | None, access_token: str) -> Sandbox:
    """Return a sandbox as the journal knows it.

    Args:
        access_token: What opens it, if that was so when it was made.
    """
    assert row.receipt is not None
    assert row.deadline_ns is not None
    claim = Claim(
        template=row.template,
        owner=row.owner,
        timeout=row.timeout,
        metadata=row.metadata,
        env=row.env,
        secrets=row.secrets,
        confided=row.confided,
        on_expiry=row.on_expiry,
        idle_timeout=row.idle_timeout,
        auto_resume=row.auto_resume,
        rng=row.rng,
        clock=row.clock,
        parent_id=row.parent_id,
        parent_checkpoint_id=row.parent_checkpoint_id,
        network=egress.parse(row.network),
    )
    past = Past(
        access_hash=row.access_hash,
        created_ns=row.created_ns,
        deadline_ns=row.deadline_ns,
        paused_ns=row.paused_ns,
        receipt=row.receipt,
        clock_offset_ns=row.clock_offset_ns,
    )
    return Sandbox(
        id=row.id, clone=clone, claim=claim, acquire_ns=0, access_token=access_token, past=past
    )
