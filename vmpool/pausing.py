"""Pausing: a sandbox makes way for its checkpoint, and comes back from it.

The journal's word is the commit point of both. Whatever fails before it leaves the sandbox as it
was; what fails after it is cleaned up behind the answer, or by the next start.
"""

from __future__ import annotations

import logging
import time
from functools import partial
from typing import TYPE_CHECKING

from vmpool import checkpoint, faults
from vmpool.cancellation import uninterrupted
from vmpool.errors import EngineError, InvalidRequestError, SnapshotError, VmpoolError
from vmpool.lifecycle import EndReason, Keep, SandboxState, Turn
from vmpool.model import Identity, Preserve, Waking, new_id
from vmpool.quota import most_disk_bytes, most_saved_bytes, share_of
from vmpool.stillness import Stillness
from vmpool.store import Purpose
from vmpool.vault import checkpoint_of

if TYPE_CHECKING:
    from vmpool.checkpoint import Saved
    from vmpool.clone import Clone
    from vmpool.holding import Holding
    from vmpool.lineages import Lineage
    from vmpool.means import Means
    from vmpool.place import Place
    from vmpool.pool import Pool
    from vmpool.quotas import Reservation
    from vmpool.sandbox import Sandbox
    from vmpool.vault import Checkpoint

log = logging.getLogger(__name__)


class Pausing:
    """Pauses and resumes the sandboxes of a host; each verb is an operation of `Household`."""

    def __init__(self, means: Means) -> None:
        self._household = means.household
        self._catalogue = means.catalogue
        self._nursery = means.nursery
        self._vault = means.vault
        self._quotas = means.quotas
        self._store = means.store
        self._metrics = means.metrics
        self._connecting = means.connecting

    async def pause(self, holding: Holding, keep: Keep) -> None:
        """Save a sandbox and end its machine. *Idempotent.*

        When cancelled before the commit, it runs on.

        Raises:
            InvalidRequestError: `disk_missing`; of one that has no disk there is no disk to keep.
            GuestError: `disk_unwritten`; it did not bring what it wrote to its disk.
            QuotaError: Its owner has as many paused ones, or as much on disk, as it may.
            DiskFullError: There is no room for its state.
            EngineError, SnapshotError: It could not be saved.
            StoreError: The journal could not take it.
        """
        sandbox = holding.sandbox
        if sandbox.state is SandboxState.PAUSED:
            return
        lineage = await self._catalogue.lineage_of_running(holding.base_id)
        await self._quotas.refresh()
        most = most_saved_bytes if keep is Keep.MEMORY else most_disk_bytes
        most_bytes = most(lineage.snapshot.spec)
        stillness = Stillness(sandbox.clone.agent)
        halt = (
            checkpoint.halt
            if keep is Keep.MEMORY
            else partial(checkpoint.halt_disk, stillness=stillness)
        )
        with self._vault.room(sandbox.owner, Purpose.PAUSE, most_bytes=most_bytes) as room:
            sandbox.turn(Turn.PAUSE)
            self._household.disregard(holding)
            try:
                saved = await halt(
                    sandbox.clone,
                    lineage.snapshot,
                    id=new_id("cp"),
                    snapshots=self._vault.directory,
                    publish=self._vault.publish,
                )
            except BaseException:
                self._run_on(holding)
                raise
            await uninterrupted(self._commit_pause(holding, saved, room, stillness))
        if keep is Keep.MEMORY:
            self._nursery.prepare(lineage.snapshot)

    async def _commit_pause(
        self, holding: Holding, saved: Saved, room: Reservation, stillness: Stillness
    ) -> None:
        """Exchange the machine, which is halted, for what was saved."""
        faults.reach("pause.saved")
        sandbox = holding.sandbox
        paused_ns = time.time_ns()
        kept = checkpoint_of(
            saved,
            purpose=Purpose.PAUSE,
            name=None,
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
            await self._store.checkpoints.pause(
                kept.row, deadline_ns=sandbox.deadline_ns, paused_ns=paused_ns
            )
        except VmpoolError:
            await self._run_again(holding, stillness)
            await self._vault.discard(kept.id)
            raise
        faults.reach("pause.recorded")
        self._vault.note(kept)
        room.give_back()
        if sandbox.over:
            return  # ended meanwhile: whoever reaps it drops what was saved, too
        machine, pool = sandbox.clone, holding.pool
        holding.pool = None
        sandbox.halted(paused_ns)
        self._household.attend(holding)
        self._metrics.stopped("pause", saved.timings.paused_ns)
        log.info("sandbox=%s clone=%s paused as checkpoint=%s", sandbox.id, machine.id, kept.id)
        await self._household.kill(holding, machine)
        faults.reach("pause.killed")
        assert pool is not None
        pool.release(machine)

    async def _run_again(self, holding: Holding, stillness: Stillness) -> None:
        """Have a machine that was halted run on; a sandbox whose machine does not has crashed."""
        sandbox = holding.sandbox
        try:
            await sandbox.clone.machine.resume()
        except EngineError as err:
            log.error("sandbox=%s does not run on: %s", sandbox.id, err)
            self._household.begin_end(holding, EndReason.CRASHED, err)
        else:
            self._run_on(holding)
            await stillness.end()

    def _run_on(self, holding: Holding) -> None:
        """Note that nothing came of a pause; its deadline counts again."""
        holding.sandbox.turn(Turn.RUNS)
        self._household.attend(holding)

    async def resume(self, holding: Holding, timeout: float | None, keep: Keep) -> bool:
        """Have a paused sandbox go on where it was, or be booted on its disk. *Idempotent.*

        When cancelled before the commit, it stays paused; but not while its memory is dropped.

        Args:
            timeout: Seconds from now until its time is up; `None` for what was left of it, or all
                of it again when none was.
            keep: With its disk alone, memory that was kept is dropped. It is gone on with once
                more for that: much of what the guest wrote may be there, and not on the disk yet.

        Returns:
            Whether it was paused.

        Raises:
            InvalidRequestError, GuestError: `disk_missing`, `disk_unwritten`; as `pause`.
            SnapshotError: `base_missing`, or its state is damaged or gone.
            CapacityError: `pool_full`.
            QuotaError: Its owner has as much as it may.
            EngineError, GuestError: It did not come up; it stays paused.
            StoreError, DiskFullError: The journal could not take it; it stays paused.
        """
        sandbox = holding.sandbox
        if sandbox.state is not SandboxState.PAUSED:
            return False
        if keep is Keep.DISK and self._state_of(sandbox).keep is Keep.MEMORY:
            await self._drop_memory(holding, timeout)
        await self._resume(holding, timeout)
        return True

    async def _drop_memory(self, holding: Holding, timeout: float | None) -> None:
        """Have a paused sandbox go on once more, to keep its disk alone; or its memory again.

        It runs on when it can be kept in neither way.
        """
        sandbox = holding.sandbox
        lineage = await self._catalogue.lineage(holding.base_id, owner=sandbox.owner)
        if not lineage.snapshot.spec.disk_bytes:
            raise InvalidRequestError(
                "there is no disk to go on with: the template was made without one",
                code="disk_missing",
                remedy="resume with the memory; or make the template with a disk",
            )
        await self._resume(holding, timeout)
        try:
            await self.pause(holding, Keep.DISK)
        except VmpoolError:
            await self._pause_again(holding)
            raise

    async def _pause_again(self, holding: Holding) -> None:
        """Pause with its memory what was woken for nothing."""
        sandbox = holding.sandbox
        if holding.ending is not None or sandbox.over:
            return
        try:
            await self.pause(holding, Keep.MEMORY)
        except VmpoolError as err:
            log.error("sandbox=%s runs, as it cannot be paused again: %s", sandbox.id, err)

    async def _resume(self, holding: Holding, timeout: float | None) -> None:
        sandbox = holding.sandbox
        kept = self._state_of(sandbox)
        lineage = await self._catalogue.lineage(holding.base_id, owner=sandbox.owner)
        await self._quotas.refresh()
        holding.share = share_of(lineage.snapshot.spec)
        with self._quotas.take(sandbox.owner, holding.share) as room:
            place = lineage.pool.reserve()
            sandbox.turn(Turn.RESUME)
            self._household.disregard(holding)
            try:
                clone = await self._woken(sandbox, kept, lineage)
                await self._connected(holding, clone, kept)
            except BaseException:
                place.give_up()
                self._stay_paused(holding)
                raise
            await uninterrupted(
                self._commit_resume(holding, clone, place, timeout, pool=lineage.pool, room=room)
            )
        if self._vault.has_paused(holding.base_id):
            self._nursery.prepare(lineage.snapshot)
        else:
            self._nursery.forgo(lineage.snapshot)

    async def _woken(self, sandbox: Sandbox, kept: Checkpoint, lineage: Lineage) -> Clone:
        who, state = sandbox.receipt, await self._vault.load(kept)
        return await self._nursery.grow(
            lineage.snapshot,
            state,
            key=kept.key,
            identity=lambda _: Identity.known(who.hostname, who.machine_id),
            policy=Waking(
                rng=Preserve() if state.has_memory else sandbox.claim.rng,
                clock=sandbox.claim.clock,
                saved_ns=kept.saved_ns,
            ),
            party=sandbox.owner,
        )

    async def _connected(self, holding: Holding, clone: Clone, kept: Checkpoint) -> None:
        """Give a new machine its network; or end it."""
        try:
            await self._connecting.connect(holding.sandbox, clone, was=kept.network)
        except BaseException:
            await self._household.kill(holding, clone)
            raise

    async def _commit_resume(
        self,
        holding: Holding,
        clone: Clone,
        place: Place[Clone],
        timeout: float | None,
        *,
        pool: Pool[Clone],
        room: Reservation,
    ) -> None:
        """Exchange what was saved for the machine, which runs."""
        faults.reach("resume.woken")
        sandbox = holding.sandbox
        kept = self._state_of(sandbox)
        left = sandbox.resumed_seconds if timeout is None else timeout
        try:
            await self._store.checkpoints.resume(
                sandbox.id,
                clone_id=clone.id,
                receipt=clone.receipt,
                deadline_ns=time.time_ns() + int(left * 1e9),
                clock_offset_ns=clone.clock_offset_ns,
            )
        except VmpoolError:
            await self._household.kill(holding, clone)
            place.give_up()
            self._stay_paused(holding)
            raise
        faults.reach("resume.recorded")
        place.fill(clone)
        holding.pool = pool
        room.give_back()  # counted where it is, from here on
        sandbox.moved(clone)
        sandbox.extend(left)
        self._household.attend(holding)
        log.info("sandbox=%s resumed as clone=%s", sandbox.id, clone.id)
        await self._vault.discard(kept.id)
        faults.reach("resume.discarded")

    async def recall(self) -> None:
        """Know the paused sandboxes of servers before this one.

        Raises:
            StoreError, DiskFullError: The journal cannot be used.
        """
        for row in await self._store.open_sandboxes():
            if row.state is not SandboxState.PAUSED:
                continue
            kept = self._vault.pause_of(row.id)
            if kept is None or row.receipt is None:
                why = "its state is gone from the disk"
            elif row.ticket:
                why = "nobody was told of it"
            else:
                self._household.recall(row, clone=None, pool=None)
                continue
            log.error("sandbox=%s is lost: %s", row.id, why)
            await self._store.end_sandbox(row.id, EndReason.SERVER_LOST)
            if kept is not None:
                await self._vault.discard(kept.id)

    def _stay_paused(self, holding: Holding) -> None:
        """Note that nothing came of waking it."""
        holding.sandbox.turn(Turn.HALTED)
        self._household.attend(holding)

    def _state_of(self, sandbox: Sandbox) -> Checkpoint:
        kept = self._vault.pause_of(sandbox.id)
        if kept is None:
            raise SnapshotError(
                f"the state of sandbox {sandbox.id!r} is gone", code="snapshot_missing"
            )
        return kept
