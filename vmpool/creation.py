"""Creation: sandboxes of a template's pool, or of a checkpoint.

It decides what a sandbox is made of, and makes sure that there is a whole one, journaled, or none.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vmpool.egress import UNCONNECTED, NetworkPolicy
from vmpool.errors import CapacityError, InvalidRequestError
from vmpool.lifecycle import AutoResume, EndReason, OnExpiry
from vmpool.model import ClockPolicy, Rng, Unique, Waking
from vmpool.quota import share_of
from vmpool.sandbox import Claim, Sandbox

if TYPE_CHECKING:
    from vmpool.forking import Forking
    from vmpool.holding import Holding
    from vmpool.means import Means
    from vmpool.model import MachineSpec
    from vmpool.vault import Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """What somebody asks of a new sandbox.

    Attributes:
        template: What it is restored from; empty when `checkpoint` says that.
        checkpoint: Id or name of a checkpoint to go on from; `None` for a template.
        timeout: Seconds until its time is up.
        secrets: Like `env`, and told to nobody.
        wait: Seconds to wait for a clone when none is ready; for a checkpoint nobody waits.
        on_expiry: What becomes of it when its time is up, or it was idle for too long.
        idle_timeout: Seconds that it may be idle; `None` for no limit.
        auto_resume: Whether a request wakes it when it is paused.
        rng: How its randomness comes about, and `clock` its time.
        network: What it may reach; `None` for what a checkpoint's sandbox might, or else nothing.
        ticket: Of a request that may be sent again, as in `store.Answers`; empty for one that may
            not.
    """

    template: str = ""
    checkpoint: str | None = None
    timeout: float
    wait: float
    metadata: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict, repr=False)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    on_expiry: OnExpiry = OnExpiry.KILL
    idle_timeout: float | None = None
    auto_resume: AutoResume = AutoResume.NEVER
    rng: Rng = field(default_factory=Unique)
    clock: ClockPolicy = ClockPolicy.NOW
    network: NetworkPolicy | None = None
    ticket: bytes = field(default=b"", repr=False)


class Creation:
    """Makes sandboxes."""

    def __init__(self, means: Means, forking: Forking) -> None:
        self._household = means.household
        self._catalogue = means.catalogue
        self._vault = means.vault
        self._quotas = means.quotas
        self._connecting = means.connecting
        self._forking = forking

    async def create(self, request: CreateRequest, owner: str) -> Sandbox:
        """Make a sandbox, journaled. *Not idempotent*; on failure and cancellation there is none.

        Raises:
            VmpoolError: As `Host.create`.
        """
        if bool(request.template) == (request.checkpoint is not None):
            raise InvalidRequestError(
                "a sandbox is made of a template or of a checkpoint", code="source_unclear"
            )
        if request.checkpoint is not None:
            await self._quotas.refresh()
            kept = self._vault.find(request.checkpoint, owner=owner)
            if request.on_expiry is OnExpiry.PAUSE_DISK:
                lineage = await self._catalogue.lineage(kept.base_id, owner=owner)
                _require_disk(lineage.snapshot.spec)
            return (await self._forking.sprout(kept, _claim(request, owner, of=kept))).sandbox
        holding = await self.hold(_claim(request, owner), request.wait)
        await self.prepare(holding)
        await self._household.record(holding)
        return holding.sandbox

    async def hold(self, claim: Claim, wait: float) -> Holding:
        """Take a clone from its pool and make it a sandbox, in one step after the hand-over.

        Nothing is journaled.

        Raises:
            NotFoundError: `template_not_found`.
            InvalidRequestError: `disk_missing`; its disk is to be kept, and it would have none.
            QuotaError: Its owner has as much as it may.
            CapacityError: No clone within `wait` seconds, or the queue is full.
        """
        await self._quotas.refresh()
        key = self._catalogue.resolve(claim.template, owner=claim.owner)
        began = time.perf_counter_ns()
        deadline = asyncio.get_running_loop().time() + wait
        counted = False
        while True:
            pool, status = self._catalogue.pool(key), self._catalogue.status(key)
            assert status.snapshot is not None
            if claim.on_expiry is OnExpiry.PAUSE_DISK:
                _require_disk(status.spec)
            share = share_of(status.spec)
            try:
                with self._quotas.take(claim.owner, share):
                    if not counted:
                        self._quotas.pace(claim.owner)
                        counted = True
                    clone = await pool.acquire(deadline=deadline, party=claim.owner)
                    took = time.perf_counter_ns() - began
                    own = replace(claim, env=status.env | claim.env) if status.env else claim
                    sandbox = self._household.make(clone, own, acquire_ns=took)
                    return self._household.admit(
                        sandbox, base_id=status.snapshot, pool=pool, share=share
                    )
            except CapacityError as err:
                # Of a template that was replaced meanwhile, the new one serves who waits.
                if err.error_code != "pool_closed" or self._catalogue.pool(key) is pool:
                    raise

    async def prepare(self, holding: Holding) -> None:
        """Have a clone of a pool come by its network, randomness and time as asked; or end it.

        Clones are restored before anybody asks, so they come with what most want.
        """
        sandbox, claim = holding.sandbox, holding.sandbox.claim
        try:
            await self._connecting.connect(sandbox, sandbox.clone)
            if (claim.rng, claim.clock) == (Unique(), ClockPolicy.NOW):
                return
            base = (await self._catalogue.lineage(holding.base_id)).snapshot
            saved_ns = base.manifest.created_ns
            async with sandbox.attended():
                await sandbox.clone.become(
                    Waking(rng=claim.rng, clock=claim.clock, saved_ns=saved_ns)
                )
        except BaseException:
            await self._household.end(holding, EndReason.KILLED)
            raise


def _require_disk(spec: MachineSpec) -> None:
    """Refuse at once what no pause could keep later."""
    if not spec.disk_bytes:
        raise InvalidRequestError(
            "there would be no disk to keep: the template was made without one",
            code="disk_missing",
            remedy="pause with the memory, or make the template with a disk",
        )


def draining() -> CapacityError:
    """Return, as an error to raise, that a server takes no new work."""
    return CapacityError(
        "this server makes way for another",
        code="server_draining",
        remedy="try again in a moment",
    )


def _claim(request: CreateRequest, owner: str, *, of: Checkpoint | None = None) -> Claim:
    """Return what a sandbox is made with; of a checkpoint, on top of what that had."""
    return Claim(
        template=request.template if of is None else of.template,
        owner=owner,
        timeout=request.timeout,
        metadata=request.metadata,
        env=request.env if of is None else of.env | request.env,
        secrets=request.secrets if of is None else of.secrets | request.secrets,
        confided=of is not None and of.confided,
        on_expiry=request.on_expiry,
        idle_timeout=request.idle_timeout,
        auto_resume=request.auto_resume,
        rng=request.rng,
        clock=request.clock,
        parent_checkpoint_id=None if of is None else of.id,
        network=request.network or (UNCONNECTED if of is None else of.network),
        ticket=request.ticket,
    )
