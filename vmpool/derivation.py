"""Derivation: templates made of checkpoints.

What was installed, written and started in a sandbox is what clones of the template begin with. The
checkpoint goes on once more, in a machine that nobody has; there the agent does what it does in
every machine that becomes a template, and gives its claim up. What is saved then is laid over the
base, so that the template stands alone: the checkpoint, and the base, may go. It decides whether a
checkpoint may become a template; names and pools are the catalogue's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

from vmpool import snapshot, template
from vmpool.cancellation import uninterrupted
from vmpool.depot import DERIVED
from vmpool.egress import NetworkMode
from vmpool.entry import Offer
from vmpool.errors import ConflictError, VmpoolError
from vmpool.fusion import fuse
from vmpool.model import Identity, Waking
from vmpool.policy import Limits
from vmpool.quota import Usage, most_saved_bytes, share_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vmpool.clone import Clone
    from vmpool.entry import TemplateStatus
    from vmpool.ground import Ground
    from vmpool.lineages import Lineage
    from vmpool.means import Means
    from vmpool.snapshot import Manifest, Snapshot
    from vmpool.vault import Checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeriveRequest:
    """What a template of a checkpoint is to be.

    Attributes:
        checkpoint: Id or name.
        keys: What it is to be known by, at least one; templates of those names are replaced.
        limits: Of each name's pool; `None` for what the settings say.
        env: On top of the checkpoint's own, for everything that runs in its sandboxes.
        number: Of 32 hexadecimal digits, that nothing else has; what the snapshot is called by.
    """

    checkpoint: str
    keys: tuple[str, ...]
    limits: Limits | None = None
    env: dict[str, str] = field(default_factory=dict, repr=False)
    number: str = field(default_factory=lambda: uuid4().hex)

    @property
    def snapshot(self) -> str:
        """Id of the snapshot that it will have."""
        return snapshot_of(self.number)


def snapshot_of(number: str) -> str:
    """Return the id of the snapshot that was made under a number."""
    return f"{DERIVED}{number}"


def number_of(snapshot_id: str) -> str | None:
    """Return the number under which a snapshot was made of a checkpoint; `None` of others."""
    if not snapshot_id.startswith(DERIVED):
        return None
    return snapshot_id.removeprefix(DERIVED)


class Derivation:
    """Makes templates of what tenants keep."""

    def __init__(self, ground: Ground, means: Means) -> None:
        self._ground = ground
        self._catalogue = means.catalogue
        self._nursery = means.nursery
        self._vault = means.vault
        self._quotas = means.quotas

    async def derive(self, request: DeriveRequest, *, owner: str) -> TemplateStatus:
        """Make a template of a checkpoint of `owner`, and have it under its names.

        On failure and on cancellation there is no snapshot; of several names some may have it.
        *Not idempotent.*

        Raises:
            NotFoundError: `checkpoint_not_found`.
            ConflictError: `checkpoint_secret`: its memory may hold secrets, which clones of a
                template would all have; `template_busy`.
            CapacityError: `pool_full`: there is no room for one more machine.
            QuotaError: It is more than its owner may have.
            SnapshotError: The checkpoint is damaged, or `base_missing`.
            EngineError, GuestError: No machine came up from it, or could not be saved.
            DiskFullError: There is no room for it.
            StoreError: The journal could not take it.
        """
        kept = self._vault.find(request.checkpoint, owner=owner)
        _require_open(kept)
        try:
            with self._catalogue.wanted(request.snapshot):
                await self._make(kept, request.snapshot)
                return await self._offer(request, kept.env | request.env)
        finally:
            await self._catalogue.release_base(request.snapshot)

    async def _offer(self, request: DeriveRequest, env: dict[str, str]) -> TemplateStatus:
        statuses = [
            await self._catalogue.offer(
                Offer(key=key, snapshot=request.snapshot, limits=request.limits, env=env)
            )
            for key in request.keys
        ]
        return statuses[0]

    async def _make(self, kept: Checkpoint, id: str) -> None:
        lineage = await self._catalogue.lineage(kept.base_id, owner=kept.owner)
        async with self._woken(kept, lineage, id) as clone:
            if kept.network.mode is not NetworkMode.NONE:
                await clone.leave()  # the guest may think that it is connected
            await template.rehearse(clone.agent)
            await clone.agent.close()
            await self._save(clone, lineage.snapshot, id)
        log.info("checkpoint=%s became snapshot=%s", kept.id, id)

    @contextlib.asynccontextmanager
    async def _woken(self, kept: Checkpoint, lineage: Lineage, id: str) -> AsyncIterator[Clone]:
        """Yield a machine that goes on from a checkpoint and is gone after the block."""
        spec = lineage.snapshot.spec
        demand = share_of(spec) + Usage(disk_bytes=most_saved_bytes(spec))
        await self._quotas.refresh()
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._quotas.take(kept.owner, demand))
            place = lineage.pool.reserve()
            undo.callback(place.give_up)
            undo.enter_context(self._vault.lent(kept, to=id))
            clone = await self._nursery.grow(
                lineage.snapshot,
                await self._vault.load(kept),
                key=kept.key,
                identity=Identity.fresh,
                policy=Waking(saved_ns=kept.saved_ns),
                party=kept.owner,
            )
            place.fill(clone)
            try:
                yield clone
            finally:
                await uninterrupted(_end(clone))
                lineage.pool.release(clone)

    async def _save(self, clone: Clone, base: Snapshot, id: str) -> None:
        snapshots, publish = self._ground.snapshots, self._ground.custody.publish
        directory = snapshot.begin(snapshots)
        try:
            async with clone.machine.capture(directory) as capture:
                await clone.machine.pause()
                await capture.take()
                await capture.write()
            # Not cut short, here and below: a thread must not write to what is being removed.
            manifest = await uninterrupted(asyncio.to_thread(_fused, directory, base, id))
            await uninterrupted(asyncio.to_thread(publish, directory, manifest, snapshots))
        except BaseException:
            await uninterrupted(asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True))
            raise


def _fused(directory: Path, base: Snapshot, id: str) -> Manifest:
    fuse(directory, base)
    known = base.manifest
    return snapshot.describe(
        directory,
        id=id,
        image=known.image,
        spec=known.spec,
        processor=known.processor,
        created_ns=time.time_ns(),
    )


async def _end(clone: Clone) -> None:
    try:
        await clone.kill()
    except VmpoolError as err:  # the next start finds its directory, and it, again
        log.error("clone=%s is not gone: %s", clone.id, err)


def _require_open(kept: Checkpoint) -> None:
    if kept.is_confidential:
        raise ConflictError(
            f"checkpoint {kept.id!r} is of a sandbox that was told secrets, which whoever has a"
            " sandbox of the template would have in its memory",
            code="checkpoint_secret",
            remedy="make the template of a sandbox without secrets",
        )
