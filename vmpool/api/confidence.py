"""Confidence: a sandbox in which an execution is told secrets counts as one that was told some."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vmpool.api.bodies import Exec
    from vmpool.api.route import Call
    from vmpool.sandbox import Sandbox


async def confide(call: Call, sandbox: Sandbox, body: Exec) -> None:
    """Note it in the journal when a request has secrets, before the guest is told of them.

    Its memory may hold them ever after: who exports a checkpoint of it has to say so.

    Raises:
        NotFoundError: `sandbox_not_found`; it has ended.
        StoreError, DiskFullError: The journal could not take it; nothing is to be told.
    """
    if body.secrets and not sandbox.claim.confided:
        await call.host.store.set_confided(sandbox.id)
        sandbox.claim = replace(sandbox.claim, confided=True)
