"""Host: one machine's worth of images, templates, pools and sandboxes.

The only place that sees everything: opened, wired and closed here. It decides who may ask what of
which sandbox, and writes down who did; what a verb does to a sandbox, and how one ends, is decided
below. It knows no HTTP.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmpool import run
from vmpool.auditing import BY, Auditing
from vmpool.branching import Branching
from vmpool.connecting import Connecting
from vmpool.creation import CreateRequest, Creation, draining
from vmpool.derivation import Derivation
from vmpool.errors import InvalidRequestError, VmpoolError
from vmpool.expiry import Expiry
from vmpool.facts import HostFacts
from vmpool.forking import Forking, ForkRequest
from vmpool.household import Household
from vmpool.lifecycle import AutoResume, EndReason, Keep, OnExpiry, OnStop, SandboxState
from vmpool.means import Means
from vmpool.model import new_id
from vmpool.networks import Networks
from vmpool.nursery import Nursery
from vmpool.pausing import Pausing
from vmpool.ports import Ports
from vmpool.quota import share_of
from vmpool.rebooting import Rebooting
from vmpool.sandbox import Claim, Sandbox, paused
from vmpool.shipping import Cargo, Confidence, Shipping, refusal
from vmpool.store import IfTaken

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from vmpool.catalogue import Catalogue
    from vmpool.clone import Clone
    from vmpool.ground import Ground
    from vmpool.holding import Holding
    from vmpool.run import RunOutcome, RunRequest
    from vmpool.store import SandboxRow
    from vmpool.vault import Checkpoint, Vault

__all__ = ["AutoResume", "Cargo", "CreateRequest", "ForkRequest", "Host", "HostFacts", "OnExpiry"]


class Host:
    """The running whole; made by `vmpool.opening.open_host`.

    Attributes:
        facts: What this machine can do.
        images: The image library.
        catalogue: The templates with their pools.
        derivation: Makes templates of checkpoints.
        store: The journal.
        metrics: What has been counted.
        ports: What may be reached of its sandboxes.
        quotas: What each tenant may have, and has.
    """

    def __init__(
        self, ground: Ground, *, facts: HostFacts, catalogue: Catalogue, vault: Vault
    ) -> None:
        self.settings = ground.settings
        self.facts = facts
        self.images = ground.images
        self.catalogue = catalogue
        self.store = ground.store
        self.metrics = ground.metrics
        self.quotas = ground.quotas
        self._vault = vault
        self._draining = False
        self._household = Household(
            store=ground.store,
            metrics=ground.metrics,
            vault=vault,
            kill_timeout=ground.settings.deadlines.kill,
            paused_seconds=ground.settings.checkpoints.paused_seconds,
            on_expiry=self._expire,
            on_gone=self._let_base_go,
        )
        self._auditing = Auditing(ground.store.audit, ground.metrics)
        self._nursery = Nursery(
            ground.standby,
            deadlines=ground.deadlines,
            airtime=ground.airtime,
            spares=ground.settings.checkpoints.waiting,
            boot=Rebooting(ground).boot,
        )
        connecting = Connecting(ground.network, ground.store)
        means = Means(
            household=self._household,
            connecting=connecting,
            catalogue=catalogue,
            nursery=self._nursery,
            vault=vault,
            store=ground.store,
            metrics=ground.metrics,
            quotas=ground.quotas,
        )
        for count in (self._household.usage, vault.usage, catalogue.usage):
            self.quotas.count(count)
        self.ports = Ports(ground.store, self._household)
        self.networks = Networks(connecting, self._household, self._auditing)
        self.derivation = Derivation(ground, means)
        self._pausing, self._branching = Pausing(means), Branching(means)
        self._forking = Forking(means)
        self._creation = Creation(means, self._forking)
        self._shipping = Shipping(ground, catalogue=catalogue, vault=vault)
        self._expiry = Expiry(self._household, pause=self.pause)
        catalogue.in_use = self._bases_in_use
        self.metrics.watch_sandboxes(lambda: self._household.tally, lambda: vault.tally)

    # Making, finding and ending sandboxes.

    async def create(self, request: CreateRequest, *, owner: str) -> Sandbox:
        """Give `owner` a sandbox of their own. *Not idempotent.*

        On failure and on cancellation there is no sandbox.

        Raises:
            InvalidRequestError: `source_unclear`; neither a template nor a checkpoint, or both.
            NotFoundError: `template_not_found`, `checkpoint_not_found`.
            CapacityError: No clone within `request.wait` seconds, the queue is full, or
                `server_draining`.
            StoreError, DiskFullError: The journal could not take it.
        """
        self._require_taking()
        sandbox = await self._creation.create(request, owner)
        name, of = request.template, request.checkpoint
        source = {"template": name} if of is None else {"checkpoint": of}
        self.audit(owner, "sandbox.create", sandbox.id, source)
        return sandbox

    async def run(self, request: RunRequest, *, owner: str) -> RunOutcome:
        """Run once in a machine that nobody had before and nobody gets after. *Not idempotent.*

        The machine is on its way out when this returns, raises or is cancelled.

        Raises:
            NotFoundError: `template_not_found`.
            CapacityError: No clone within `request.wait` seconds, or the queue is full.
            VmpoolError: As `vmpool.run.run`.
        """
        self._require_taking()
        timeout = self.settings.requests.sandbox_timeout_most
        claim = Claim(
            template=request.template, owner=owner, timeout=timeout, network=request.network
        )
        holding = await self._creation.hold(claim, request.wait)
        outcome = "cancelled"
        try:
            await self._creation.prepare(holding)
            answer = await run.run(holding.sandbox, request)
            outcome = "ok"
        except VmpoolError as err:
            outcome = err.error_code
            raise
        finally:
            self._household.begin_end(holding, EndReason.FINISHED)
            detail = {"template": request.template}
            self.audit(owner, "run", holding.sandbox.id, detail, outcome=outcome)
        return answer

    def sandboxes(self, *, owner: str) -> list[Sandbox]:
        """Return the sandboxes of `owner`, newest first."""
        return self._household.of(owner)

    async def sandbox(self, id: str, *, owner: str) -> Sandbox:
        """Return one sandbox of `owner`.

        Raises:
            NotFoundError: `sandbox_not_found` when there never was one or it is somebody else's,
                `sandbox_ended` when it was theirs and is no more.
        """
        return (await self._household.find(id, owner=owner)).sandbox

    async def awake(self, id: str, *, owner: str) -> Sandbox:
        """Return one sandbox of `owner` with a machine: one that was made so is resumed for that.

        Raises:
            NotFoundError: As `sandbox`.
            ConflictError: `sandbox_paused`; it does not wake by itself.
            VmpoolError: As `resume`.
        """
        holding = await self._household.find(id, owner=owner)
        while holding.sandbox.state is not SandboxState.RUNNING:
            if holding.sandbox.over:
                raise holding.sandbox.ended()
            if holding.sandbox.state is SandboxState.ROLLING_BACK:
                break  # its machine stands until another takes its place
            if holding.operation is not None and not holding.operation.done():
                await asyncio.wait({holding.operation})
            elif holding.sandbox.claim.auto_resume is AutoResume.ON_REQUEST:
                await self.resume(id, owner=owner, timeout=None)
            else:
                raise paused(id)
        return holding.sandbox

    async def sandbox_by_access_token(self, id: str, token: str) -> Sandbox | None:
        """Return the sandbox when `token` is its own access token, else `None`."""
        holding = self._household.living(id)
        if holding is None or not holding.sandbox.admits(token):
            return None
        return holding.sandbox

    async def set_timeout(self, id: str, *, owner: str, timeout: float) -> Sandbox:
        """Move a sandbox's deadline to `timeout` seconds from now. *Idempotent* but for the time.

        A paused one gets that much time when it is resumed; of one that is being resumed, this is
        the later word, and waits for that.

        Raises:
            NotFoundError: As `sandbox`.
            StoreError, DiskFullError: The journal could not take it; the deadline has moved all the
                same.
        """
        holding = await self._household.find(id, owner=owner)
        while holding.sandbox.state is SandboxState.RESUMING and holding.operation is not None:
            await asyncio.wait({holding.operation})
            holding = await self._household.find(id, owner=owner)
        holding.sandbox.extend(timeout)
        holding.overdue_since = None
        if holding.sandbox.state in {SandboxState.RUNNING, SandboxState.ROLLING_BACK}:
            self._household.set_alarm(holding, timeout)
        if holding.journaled:
            await self.store.set_deadline(id, holding.sandbox.deadline_ns)
        return holding.sandbox

    def retract(self, ticket: bytes) -> None:
        """End the sandboxes that were made for a request, when nobody can be told of them."""
        self._household.retract(ticket)

    async def kill(self, id: str, *, owner: str) -> None:
        """End a sandbox; return when its machine is gone. When cancelled, it ends all the same.

        Waits for nothing that is under way with it; that comes to nothing.

        Raises:
            NotFoundError: As `sandbox`.
        """
        holding = await self._household.find(id, owner=owner)
        self.audit(owner, "sandbox.kill", id, {})
        await self._household.end(holding, EndReason.KILLED)

    # Turns of one sandbox. Those of one wait for each other.

    async def pause(self, id: str, *, owner: str, keep: Keep = Keep.MEMORY) -> Sandbox:
        """Save a sandbox, end its machine and give its place back. *Idempotent.*

        When cancelled after it began, it goes on. On failure the sandbox runs on.

        Raises:
            NotFoundError: As `sandbox`.
            VmpoolError: As `Pausing.pause`.
        """
        holding = await self._household.find(id, owner=owner)
        with self._auditing.noted("sandbox.pause", id, owner, {"keep": keep.value}):
            await self._household.finish(holding, lambda: self._pausing.pause(holding, keep))
        return holding.sandbox

    async def resume(
        self, id: str, *, owner: str, timeout: float | None, keep: Keep = Keep.MEMORY
    ) -> Sandbox:
        """Have a paused sandbox go on where it was, or boot on its disk. *Idempotent.*

        When cancelled after it began, it goes on. On failure the sandbox stays paused.

        Args:
            timeout: Seconds from now until its time is up; `None` for what was left of it. Moves
                the deadline also of one that runs.
            keep: What of it is to go on; with its disk alone it is booted.

        Raises:
            NotFoundError: As `sandbox`.
            VmpoolError: As `Pausing.resume`.
        """
        holding = await self._household.find(id, owner=owner)
        with self._auditing.noted("sandbox.resume", id, owner, {"keep": keep.value}):
            woken = await self._household.finish(
                holding, lambda: self._pausing.resume(holding, timeout, keep)
            )
        if timeout is not None and not woken:
            return await self.set_timeout(id, owner=owner, timeout=timeout)
        return holding.sandbox

    async def rollback(self, id: str, *, owner: str, checkpoint: str) -> Sandbox:
        """Have a sandbox go on from a checkpoint, as who it is. *Idempotent.*

        When cancelled after it began, it goes on. On failure the sandbox runs on as it was.
        Whatever runs in it over its agent ends with `sandbox_rolled_back`.

        Args:
            checkpoint: Id or name.

        Raises:
            NotFoundError: As `sandbox`; `checkpoint_not_found`.
            VmpoolError: As `Branching.roll_back`.
        """
        holding = await self._household.find(id, owner=owner)
        kept = self._vault.find(checkpoint, owner=owner)
        with self._auditing.noted("sandbox.rollback", id, owner, {"checkpoint": kept.id}):
            await self._household.finish(holding, lambda: self._branching.roll_back(holding, kept))
        return holding.sandbox

    async def fork(
        self, id: str, request: ForkRequest, *, owner: str
    ) -> list[Sandbox | VmpoolError]:
        """Make children that go on where a sandbox is; it runs on. *Not idempotent.*

        When cancelled there are no children.

        Returns:
            For each child the sandbox, or why there is none.

        Raises:
            InvalidRequestError: `fork_too_wide`; not from one child to as many as one may ask for.
            NotFoundError: As `sandbox`.
            VmpoolError: As `Forking.fork`.
        """
        self._require_taking()
        most = self.settings.checkpoints.children
        if not 1 <= request.count <= most:
            raise InvalidRequestError(
                f"a fork has from 1 to {most} children, not {request.count}", code="fork_too_wide"
            )
        holding = await self._household.find(id, owner=owner)
        with self._auditing.noted("sandbox.fork", id, owner, {"count": str(request.count)}):
            children = await self._household.attempt(
                holding,
                lambda: self._forking.fork(holding, request),
                undo=self._forking.undo,
            )
        for child in children:
            if isinstance(child, Sandbox):
                self.audit(owner, "sandbox.create", child.id, {"parent": id})
        return children

    # Checkpoints.

    async def checkpoint(
        self,
        id: str,
        *,
        owner: str,
        name: str | None,
        if_taken: IfTaken = IfTaken.REFUSE,
        keep: Keep = Keep.MEMORY,
    ) -> Checkpoint:
        """Keep the state of a sandbox, or of its disk. *Not idempotent*; goes on when cancelled.

        Raises:
            NotFoundError: As `sandbox`.
            VmpoolError: As `Branching.keep`.
        """
        holding = await self._household.find(id, owner=owner)
        detail = {"keep": keep.value} | ({} if name is None else {"name": name})
        with self._auditing.noted("sandbox.checkpoint", id, owner, detail):
            return await self._household.finish(
                holding, lambda: self._branching.keep(holding, name, if_taken, keep)
            )

    async def checkpoints(self, *, owner: str, sandbox: str | None) -> list[Checkpoint]:
        """Return what `owner` keeps of a sandbox, or of all, newest first."""
        return self._vault.of(owner, sandbox_id=sandbox)

    def find_checkpoint(self, id_or_name: str, *, owner: str) -> Checkpoint:
        """Return what `owner` keeps under an id or a name.

        Raises:
            NotFoundError: `checkpoint_not_found`.
        """
        return self._vault.find(id_or_name, owner=owner)

    async def remove_checkpoint(self, id_or_name: str, *, owner: str) -> None:
        """Remove a checkpoint; sandboxes that were made from it live on. *Not idempotent.*

        Raises:
            NotFoundError: `checkpoint_not_found`.
            ConflictError: `checkpoint_in_use`; sandboxes are being restored from it.
            StoreError, DiskFullError: The journal could not take it; the checkpoint stays.
        """
        kept = self._vault.find(id_or_name, owner=owner)
        with self._auditing.noted("checkpoint.remove", kept.id, owner):
            await self._vault.remove(kept)
        await self.catalogue.release_base(kept.base_id)

    def export_checkpoint(
        self, id_or_name: str, *, owner: str, cargo: Cargo, confidence: Confidence = Confidence.KEEP
    ) -> AsyncGenerator[bytes, None]:
        """Return what yields a checkpoint as one compressed file, as `Shipping.export`.

        Raises:
            NotFoundError: `checkpoint_not_found`.
        """
        kept = self._vault.find(id_or_name, owner=owner)
        detail = {"cargo": cargo.value, "secrets": confidence.value}
        outcome = "ok" if (no := refusal(kept, confidence)) is None else no.error_code
        self.audit(owner, "checkpoint.export", kept.id, detail, outcome=outcome)
        return self._shipping.export(kept, cargo, confidence)

    async def import_checkpoint(
        self,
        chunks: AsyncIterator[bytes],
        *,
        owner: str,
        name: str | None,
        believing: str | None = None,
    ) -> Checkpoint:
        """Keep a checkpoint that another host, or this one, exported. *Not idempotent.*

        A host whose key this one trusts must have signed it, or the key `believing`.
        Its memory and devices are loaded by the hypervisor as they are: only for those who may
        choose what that runs.

        Raises:
            VmpoolError: As `Shipping.take_in`.
        """
        id = new_id("cp")
        said = (("name", name), ("believing", believing))
        detail = {key: value for key, value in said if value is not None}
        with self._auditing.noted("checkpoint.import", id, owner, detail):
            return await self._shipping.take_in(
                chunks, id=id, owner=owner, name=name, believing=believing
            )

    # Coming up and going down.

    async def recall(self) -> None:
        """Know the paused sandboxes of servers before this one.

        Raises:
            StoreError, DiskFullError: The journal cannot be used.
        """
        await self._pausing.recall()

    async def take_over(self, row: SandboxRow, clone: Clone) -> Sandbox:
        """Hold a sandbox of a server before this one, whose machine was adopted.

        Raises:
            SnapshotError: `base_missing`; the clone is still the caller's.
        """
        lineage = await self.catalogue.lineage_of_running(row.base_id, owner=row.owner)
        lineage.pool.admit(clone)
        return self._household.recall(
            row, clone=clone, pool=lineage.pool, share=share_of(lineage.snapshot.spec)
        ).sandbox

    @property
    def draining(self) -> bool:
        """Whether it takes no new work any more, for its sandboxes pass to another server."""
        return self._draining

    def hand_over(self) -> None:
        """Take no new work from now on, and leave all sandboxes to the next server. *Idempotent.*

        What is under way goes on until `close`.
        """
        self._draining = True

    async def close(self) -> None:
        """End or leave every sandbox that runs, and wait for all that was begun. *Idempotent.*

        Paused ones stay; so do all after `hand_over`, or as the settings say. Only after the pools:
        whoever gets a clone meanwhile would keep it. Goes on to its end when cancelled, for no
        longer than two kill timeouts.
        """
        keep = self._draining or self.settings.on_stop is OnStop.KEEP
        await self._household.close(OnStop.KEEP if keep else OnStop.KILL)

    def audit(
        self, owner: str, action: str, subject: str, detail: dict[str, str], *, outcome: str = "ok"
    ) -> None:
        """Write who did what into the journal, behind the answer.

        Args:
            outcome: `ok`, `cancelled` or the code of the error.
        """
        self._auditing.note(owner, action, subject, detail, outcome=outcome)

    def _require_taking(self) -> None:
        if self._draining:
            raise draining()

    def _expire(self, holding: Holding, reason: EndReason) -> None:
        BY.set(None)  # time does it, in a context of its own, and not who set the alarm
        self._expiry.due(holding, reason)

    async def _let_base_go(self, base_id: str) -> None:
        if not self._vault.has_paused(base_id):
            await self._nursery.drop(base_id)
        await self.catalogue.release_base(base_id)

    def _bases_in_use(self) -> set[str]:
        return self._household.base_ids | self._vault.base_ids
