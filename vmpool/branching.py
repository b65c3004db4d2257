"""Branching: checkpoints of a running sandbox, and going back to one.

The sandbox runs on whatever happens, on the machine it had or, once the journal has taken it, on
the one that goes on from the checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING

from vmpool import checkpoint, faults
from vmpool.cancellation import uninterrupted
from vmpool.errors import ConflictError, VmpoolError
from vmpool.lifecycle import Keep, SandboxState, Turn
from vmpool.model import Identity, Waking, new_id
from vmpool.quota import most_disk_bytes, most_saved_bytes
from vmpool.stillness import Stillness
from vmpool.store import IfTaken, Purpose
from vmpool.vault import checkpoint_of

if TYPE_CHECKING:
    from vmpool.clone import Clone
    from vmpool.holding import Holding
    from vmpool.means import Means
    from vmpool.vault import Checkpoint

log = logging.getLogger(__name__)


class Branching:
    """Keeps and rolls back the sandboxes of a host; each verb is an operation of `Household`."""

    def __init__(self, means: Means) -> None:
        self._household = means.household
        self._catalogue = means.catalogue
        self._nursery = means.nursery
        self._vault = means.vault
        self._quotas = means.quotas
        self._store = means.store
        self._metrics = means.metrics
        self._connecting = means.connecting

    async def keep(
        self,
        holding: Holding,
        name: str | None,
        if_taken: IfTaken = IfTaken.REFUSE,
        keep: Keep = Keep.MEMORY,
    ) -> Checkpoint:
        """Keep the state that a running sandbox is in, or its disk alone. *Not idempotent.*

        Raises:
            ConflictError: `sandbox_paused`, `checkpoint_exists`.
            InvalidRequestError: `checkpoint_name_invalid`; `disk_missing`: there is no disk.
            GuestError: `disk_unwritten`; it did not bring what it wrote to its disk.
            QuotaError: Its owner has as many checkpoints, or as much, as it may.
            DiskFullError: There is no room for it.
            EngineError, SnapshotError: It could not be saved.
            StoreError: The journal could not take it.
        """
        sandbox = holding.running()
        lineage = await self._catalogue.lineage_of_running(holding.base_id)
        await self._quotas.refresh()
        most = most_saved_bytes if keep is Keep.MEMORY else most_disk_bytes
        most_bytes = most(lineage.snapshot.spec)
        save = (
            checkpoint.save
            if keep is Keep.MEMORY
            else partial(checkpoint.save_disk, stillness=Stillness(sandbox.clone.agent))
        )
        with self._vault.room(
            sandbox.owner, Purpose.KEPT, name, most_bytes=most_bytes, if_taken=if_taken
        ):
            saved = await save(
                sandbox.clone,
                lineage.snapshot,
                id=new_id("cp"),
                snapshots=self._vault.directory,
                publish=self._vault.publish,
            )
            kept = checkpoint_of(
                saved,
                purpose=Purpose.KEPT,
                name=name,
                owner=sandbox.owner,
                sandbox_id=sandbox.id,
                template=sandbox.template,
                key=sandbox.clone.key,
                clock_offset_ns=sandbox.clock_offset_ns,
                env=sandbox.claim.env,
                secrets=sandbox.claim.secrets,
                confided=sandbox.claim.confided,
                network=sandbox.claim.network,
            )
            try:
                await uninterrupted(self._vault.keep(kept, if_taken))
            except asyncio.CancelledError:  # the sandbox ends, and nobody will be told of it
                await self._vault.remove(kept)
                raise
        self._metrics.stopped("checkpoint", saved.timings.paused_ns)
        log.info("sandbox=%s kept as checkpoint=%s", sandbox.id, kept.id)
        return kept

    async def roll_back(self, holding: Holding, to: Checkpoint) -> None:
        """Have a running sandbox go on from a checkpoint of its lineage. *Idempotent.*

        On one that is a disk alone it is booted.

        Raises:
            ConflictError: `sandbox_paused`; `checkpoint_unrelated`: it is of another template;
                `checkpoint_secret`: its memory may hold secrets, of which the sandbox has none.
            NotFoundError: `checkpoint_not_found`; it was removed meanwhile.
            SnapshotError: The checkpoint is damaged, or `base_missing`.
            EngineError, GuestError: No machine came up from it.
            StoreError, DiskFullError: The journal could not take it.
        """
        sandbox = holding.running()
        _require_related(holding, to)
        lineage = await self._catalogue.lineage(holding.base_id)
        who, claim = sandbox.receipt, sandbox.claim
        with self._vault.lent(to, to=sandbox.id):
            sandbox.turn(Turn.ROLL_BACK)
            try:
                clone = await self._nursery.grow(
                    lineage.snapshot,
                    await self._vault.load(to),
                    key=to.key,
                    identity=lambda _: Identity.known(who.hostname, who.machine_id),
                    policy=Waking(rng=claim.rng, clock=claim.clock, saved_ns=to.saved_ns),
                    party=sandbox.owner,
                )
                try:
                    await self._connecting.connect(sandbox, clone, was=to.network)
                except BaseException:
                    await self._household.kill(holding, clone)
                    raise
                await uninterrupted(self._commit_move(holding, clone))
            finally:
                if sandbox.state is SandboxState.ROLLING_BACK:
                    sandbox.turn(Turn.RUNS)

    async def _commit_move(self, holding: Holding, clone: Clone) -> None:
        """Exchange a sandbox's machine for another."""
        faults.reach("rollback.woken")
        sandbox = holding.sandbox
        try:
            await self._store.checkpoints.move(
                sandbox.id,
                clone_id=clone.id,
                receipt=clone.receipt,
                clock_offset_ns=clone.clock_offset_ns,
            )
        except VmpoolError:
            await self._household.kill(holding, clone)
            raise
        faults.reach("rollback.recorded")
        old = sandbox.clone
        assert holding.pool is not None
        holding.pool.exchange(old, clone)
        sandbox.moved(clone)
        self._household.attend(holding)
        log.info("sandbox=%s clone=%s made way for clone=%s", sandbox.id, old.id, clone.id)
        await self._household.kill(holding, old)
        faults.reach("rollback.killed")


def _require_related(holding: Holding, to: Checkpoint) -> None:
    sandbox = holding.sandbox
    if to.base_id != holding.base_id:
        raise ConflictError(
            f"checkpoint {to.id!r} is of another template than sandbox {sandbox.id!r}",
            code="checkpoint_unrelated",
            remedy="create a sandbox from it",
        )
    if to.is_confidential and not (sandbox.claim.secrets or sandbox.claim.confided):
        # Its own checkpoints would count as having none, and be exported with what they hold.
        raise ConflictError(
            f"checkpoint {to.id!r} is of a sandbox that was told secrets, and sandbox"
            f" {sandbox.id!r} was told none",
            code="checkpoint_secret",
            remedy="create a sandbox from it",
        )
