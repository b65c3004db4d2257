"""Forking: children that go on where a sandbox is, as somebody else.

Room for all of them is taken, and a hypervisor for each waits or has failed, before the parent is
stopped; it runs on as soon as it was copied, whatever becomes of the children. Each child is
journaled before anyone is told of it; one that fails is an error among the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vmpool import checkpoint, faults
from vmpool.cancellation import uninterrupted
from vmpool.egress import NetworkPolicy
from vmpool.errors import InfrastructureError, PoolBusyError, VmpoolError
from vmpool.lifecycle import EndReason
from vmpool.model import DEFAULT_USER, ClockPolicy, Identity, Rng, Unique, Waking, new_id
from vmpool.quota import share_of
from vmpool.sandbox import Claim, Sandbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from vmpool.clone import Clone
    from vmpool.holding import Holding
    from vmpool.lineages import Lineage
    from vmpool.means import Means
    from vmpool.place import Place
    from vmpool.pool import Pool
    from vmpool.quotas import Reservation
    from vmpool.snapshot import Snapshot
    from vmpool.vault import Checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForkRequest:
    """What somebody asks of a sandbox's children.

    Attributes:
        count: How many, at least one.
        timeout: Seconds until a child's time is up.
        metadata: Theirs alone.
        env: On top of the parent's; `secrets` likewise.
        files: Guest path to content, written before anyone is told of a child.
        rng: How their randomness comes about, and `clock` their time.
        network: What they may reach; `None` for what the parent may.
        ticket: As of a `CreateRequest`.
    """

    count: int
    timeout: float
    metadata: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict, repr=False)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    files: dict[str, bytes] = field(default_factory=dict, repr=False)
    rng: Rng = field(default_factory=Unique)
    clock: ClockPolicy = ClockPolicy.NOW
    network: NetworkPolicy | None = None
    ticket: bytes = field(default=b"", repr=False)


class Forking:
    """Makes sandboxes of states that others were in."""

    def __init__(self, means: Means) -> None:
        self._household = means.household
        self._catalogue = means.catalogue
        self._nursery = means.nursery
        self._vault = means.vault
        self._connecting = means.connecting
        self._quotas = means.quotas

    async def fork(self, holding: Holding, request: ForkRequest) -> list[Sandbox | VmpoolError]:
        """Make children of a running sandbox; an operation of `Household`. *Not idempotent.*

        When cancelled there are no children.

        Returns:
            For each child the sandbox, or why there is none.

        Raises:
            ConflictError: `sandbox_paused`.
            CapacityError: `pool_full`; there is no room for all of them.
            QuotaError: All of them are more than the owner may have.
            VmpoolError: The parent could not be copied, as `checkpoint.branch`.
        """
        parent = holding.running()
        machine = parent.clone
        lineage = await self._catalogue.lineage(holding.base_id, owner=parent.owner)
        seedling = _Seedling(
            key=machine.key,
            claim=_claim(parent, request),
            parent=parent,
            was=parent.claim.network,
            files=request.files,
        )
        await self._quotas.refresh()
        with contextlib.ExitStack() as undo:
            faults.reach("fork.begun")
            share = share_of(lineage.snapshot.spec)
            rooms = self._quotas.take_each(undo, parent.owner, share, request.count)
            places = _reserve_all(undo, lineage.pool, request.count)
            self._quotas.pace(parent.owner, request.count)
            state: asyncio.Future[tuple[Snapshot, int]] = asyncio.Future()
            stood: list[asyncio.Future[None]] = [asyncio.Future() for _ in places]
            births = [
                asyncio.create_task(self._birth(*each, lineage, seedling, state=state))
                for each in zip(places, rooms, stood, strict=True)
            ]
            try:
                at = self._vault.directory
                await asyncio.wait(stood)  # a start beside the copy would make the stop longer
                async with checkpoint.branch(machine, lineage.snapshot, at=at) as snapshot:
                    faults.reach("fork.branched")
                    state.set_result((snapshot, time.time_ns() + parent.clock_offset_ns))
                    await asyncio.wait(births)
            except BaseException:
                state.cancel()
                await uninterrupted(self._abort(births))
                raise
            log.info("sandbox=%s forked into %d", parent.id, len(births))
            return [_outcome(birth) for birth in births]

    async def sprout(self, kept: Checkpoint, claim: Claim) -> Holding:
        """Make a sandbox of a checkpoint. *Not idempotent.*

        On failure and on cancellation there is none.

        Raises:
            NotFoundError: `checkpoint_not_found`; it was removed meanwhile.
            CapacityError: `pool_full`.
            QuotaError: The owner has as much as it may.
            VmpoolError: No machine came up from it, or the journal could not take it.
        """
        began = time.perf_counter_ns()
        lineage = await self._catalogue.lineage(kept.base_id, owner=claim.owner)
        await self._quotas.refresh()
        with contextlib.ExitStack() as undo:
            room = undo.enter_context(
                self._quotas.take(claim.owner, share_of(lineage.snapshot.spec))
            )
            place = _reserved(undo, lineage.pool)
            self._quotas.pace(claim.owner)
            id = new_id()
            undo.enter_context(self._vault.lent(kept, to=id))
            clone = await self._nursery.grow(
                lineage.snapshot,
                await self._vault.load(kept),
                key=kept.key,
                identity=Identity.fresh,
                policy=Waking(rng=claim.rng, clock=claim.clock, saved_ns=kept.saved_ns),
                party=claim.owner,
            )
            place.fill(clone)
            took = time.perf_counter_ns() - began
            sandbox = self._household.make(clone, claim, acquire_ns=took, id=id)
            holding = self._hold(sandbox, lineage, room)
        return await self._furnish(holding, {}, was=kept.network)

    async def _birth(
        self,
        place: Place[Clone],
        room: Reservation,
        stands: asyncio.Future[None],
        lineage: Lineage,
        seedling: _Seedling,
        *,
        state: asyncio.Future[tuple[Snapshot, int]],
    ) -> Sandbox:
        began = time.perf_counter_ns()
        try:
            waiting = await self._nursery.stand_by(lineage.snapshot)
        finally:
            stands.set_result(None)
        try:
            snapshot, saved_ns = await asyncio.shield(state)
        except BaseException:
            await waiting.kill()
            raise
        # What was confided until the state was saved is in it.
        claim = replace(seedling.claim, confided=seedling.parent.claim.confided)
        clone = await self._nursery.wake(
            waiting,
            snapshot,
            key=seedling.key,
            identity=Identity.fresh,
            policy=Waking(rng=claim.rng, clock=claim.clock, saved_ns=saved_ns),
            party=claim.owner,
        )
        faults.reach("fork.woken")
        place.fill(clone)
        took = time.perf_counter_ns() - began
        sandbox = self._household.make(clone, claim, acquire_ns=took)
        holding = self._hold(sandbox, lineage, room)
        await self._furnish(holding, seedling.files, was=seedling.was)
        faults.reach("fork.recorded")
        return sandbox

    def _hold(self, sandbox: Sandbox, lineage: Lineage, room: Reservation) -> Holding:
        """Watch over a sandbox, which counts there from here on."""
        snapshot = lineage.snapshot
        holding = self._household.admit(
            sandbox,
            base_id=snapshot.manifest.id,
            pool=lineage.pool,
            share=share_of(snapshot.spec),
        )
        room.give_back()
        return holding

    async def _furnish(
        self, holding: Holding, files: dict[str, bytes], *, was: NetworkPolicy
    ) -> Holding:
        """Connect, furnish and journal a sandbox; or end it."""
        sandbox = holding.sandbox
        try:
            await self._connecting.connect(sandbox, sandbox.clone, was=was)
            for path, content in files.items():
                async with sandbox.attended() as agent:
                    await agent.write_file(path, _once(content), user=DEFAULT_USER)
        except BaseException:
            await self._household.end(holding, EndReason.KILLED)
            raise
        await self._household.record(holding)
        return holding

    async def undo(self, children: Sequence[Sandbox | VmpoolError]) -> None:
        """End the children that nobody will be told of."""
        living = [
            holding
            for child in children
            if isinstance(child, Sandbox)
            and (holding := self._household.living(child.id)) is not None
        ]
        await asyncio.gather(*(self._household.end(each, EndReason.KILLED) for each in living))

    async def _abort(self, births: list[asyncio.Task[Sandbox]]) -> None:
        """End what has come and what is coming."""
        for birth in births:
            birth.cancel()
        await asyncio.wait(births)
        await self.undo(
            [each.result() for each in births if not each.cancelled() and each.exception() is None]
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seedling:
    """What children are made of beside the state.

    Attributes:
        parent: Whose state it is.
        key: What the agent in the state obeys.
        was: What the state's guest might reach.
    """

    parent: Sandbox
    key: bytes = field(repr=False)
    claim: Claim
    was: NetworkPolicy
    files: dict[str, bytes] = field(repr=False)


def _claim(parent: Sandbox, request: ForkRequest) -> Claim:
    """Return what a child is asked for with; what the request does not say is the parent's."""
    return replace(
        parent.claim,
        timeout=request.timeout,
        metadata=request.metadata,
        env=parent.claim.env | request.env,
        secrets=parent.claim.secrets | request.secrets,
        rng=request.rng,
        clock=request.clock,
        parent_id=parent.id,
        parent_checkpoint_id=None,
        network=parent.claim.network if request.network is None else request.network,
        ticket=request.ticket,
    )


def _reserve_all(undo: contextlib.ExitStack, pool: Pool[Clone], count: int) -> list[Place[Clone]]:
    """Return places for all children of a fork, or none."""
    places: list[Place[Clone]] = []
    while len(places) < count:
        try:
            places.append(_reserved(undo, pool))
        except PoolBusyError as err:
            raise PoolBusyError(
                f"{count} children do not fit: {pool.name!r} has room for {len(places)}",
                code=err.error_code,
                remedy="fork fewer, kill or pause a sandbox, or raise the template's limits",
            ) from err
    return places


def _reserved(undo: contextlib.ExitStack, pool: Pool[Clone]) -> Place[Clone]:
    """Return a place that `undo` gives up unless it was filled."""
    place = pool.reserve()
    undo.callback(place.give_up)
    return place


def _outcome(birth: asyncio.Task[Sandbox]) -> Sandbox | VmpoolError:
    error = birth.exception()
    if error is None:
        return birth.result()
    if isinstance(error, VmpoolError):
        log.warning("a child was not born: %s", error)
        return error
    log.error("a child was not born", exc_info=error)
    return InfrastructureError("a child could not be made, for a reason that is in the log")


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content
