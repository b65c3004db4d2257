"""Catalogue: the templates that a host offers, each with its snapshot and its pool.

It decides when a template is ready, and what becomes of its pool and snapshot when it is replaced
or removed. It knows no sandbox: pools give clones to whoever asks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vmpool import clone, draft
from vmpool.cancellation import uninterrupted
from vmpool.depot import Depot
from vmpool.entry import Entry, Offer, TemplateRequest, TemplateState, TemplateStatus
from vmpool.errors import (
    CapacityError,
    ConflictError,
    InfrastructureError,
    NotFoundError,
    VmpoolError,
)
from vmpool.lineages import Lineage, Lineages
from vmpool.model import Accelerator, Transport
from vmpool.pool import Pool
from vmpool.quota import Usage
from vmpool.store import LOCAL, ImageRow, TemplateRow
from vmpool.template_key import key_of, name_of, owner_of, visible
from vmpool.vouching import Vouching

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine
    from contextlib import AbstractContextManager

    from vmpool.clone import Clone
    from vmpool.ground import Ground
    from vmpool.image import Image
    from vmpool.policy import Limits
    from vmpool.snapshot import Base, Manifest, Snapshot

__all__ = ["Catalogue", "Offer", "TemplateRequest", "TemplateState", "TemplateStatus"]

log = logging.getLogger(__name__)


class Catalogue:
    """The templates of a host, and the snapshots that outlive theirs; `close` after use."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._entries: dict[str, Entry] = {}
        self._coming: dict[str, Entry] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._depot = Depot(
            ground.engine,
            snapshots=ground.snapshots,
            run=ground.clones,
            boot_timeout=ground.settings.deadlines.boot,
            custody=ground.custody,
            accelerators={Accelerator.TCG, ground.accelerator},
            transports={Transport.SERIAL, ground.transport},
        )
        self._vouching = Vouching(ground.images, ground.custody)
        self._lineages = Lineages(self._depot, self._account)
        self._closed = False

    async def close(self) -> None:
        """Stop what is being made and close every pool. *Idempotent.*

        Goes on to its end when cancelled, and raises then.
        """
        self._closed = True
        for task in self._tasks.values():
            task.cancel()
        await uninterrupted(self._wind_up())

    async def _wind_up(self) -> None:
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        pools = [entry.pool for entry in self._entries.values() if entry.pool is not None]
        await asyncio.gather(*(pool.close() for pool in pools), self._lineages.close())

    @property
    def in_use(self) -> Callable[[], Collection[str]]:
        """Tells the ids of the snapshots that sandboxes and checkpoints need.

        Given by who has those, before `restore_saved`; whatever it names is not removed.
        """
        return self._lineages.in_use

    @in_use.setter
    def in_use(self, in_use: Callable[[], Collection[str]]) -> None:
        self._lineages.in_use = in_use

    async def lineage(self, base: Base | str, *, owner: str | None = None) -> Lineage:
        """Return what descends from a snapshot restores over, and the pool that has its places.

        A template that names it comes first, and is waited for while it is brought up. Without one,
        the snapshot is checked the first time, and its pool gives out no clones of its own.

        Args:
            owner: Who needs a place: of several templates that name it, the tenant's own comes
                before everybody's, and that before other tenants'.

        Raises:
            SnapshotError: `base_missing`; it is not here, or was made anew since. Else it is
                damaged, or does not fit this host any more.
            HostError: This host has not its CPU model; code `cpu_model_unfit`.
            ImageError, NotFoundError: Its image is damaged or gone.
            CapacityError: `pool_closed`: the host is closing.
        """
        found = await self._offered(base, owner) or await self._lineages.find_fit(base)
        await self._vouching.base(found.snapshot)
        return found

    async def lineage_of_running(self, base: Base | str, *, owner: str | None = None) -> Lineage:
        """Return what a machine that runs was restored over, whether or not another could be.

        A hypervisor that was replaced on the disk since, by a newer one, runs on.

        Raises:
            SnapshotError, CapacityError: As `lineage`, but it need not fit.
        """
        return await self._offered(base, owner) or await self._lineages.find(base)

    async def _offered(self, base: Base | str, owner: str | None) -> Lineage | None:
        """Return the lineage of a template that names a snapshot, once it is brought up."""
        if self._closed:
            raise CapacityError("the host is closing", code="pool_closed")
        id = base if isinstance(base, str) else base.id
        named = [each for each in self._entries.values() if each.snapshot_id == id]
        nearest = {owner: 0, None: 1}
        for entry in sorted(named, key=lambda each: nearest.get(owner_of(each.name), 2)):
            if entry.pool is None and entry.name in self._tasks:
                await asyncio.wait((self._tasks[entry.name],))
            if (lineage := entry.lineage) is not None and self._entries.get(entry.name) is entry:
                return lineage.require(base)
        return None

    async def bases(self) -> dict[str, int]:
        """Return the bytes on disk of each snapshot that is kept though no template names it."""
        return await self._depot.sizes(but=self._named())

    async def alike(self, base: Manifest) -> str | None:
        """Return the id of a snapshot here with the memory and disk of `base`, whatever its name.

        Of several one that has the id of `base`.
        """
        return await self._depot.alike(base)

    async def require_fit(self, stranger: Snapshot) -> None:
        """Refuse a snapshot that cannot run on this host; of its files none is read.

        Raises:
            SnapshotError: As `fitness.require_fit`.
            HostError: This host has not its CPU model; code `cpu_model_unfit`.
        """
        await self._depot.require_fit(stranger)

    def wanted(self, id: str) -> AbstractContextManager[None]:
        """Count a snapshot as needed for as long as the block lasts, also one that comes yet."""
        return self._lineages.wanted(id)

    async def release_base(self, id: str) -> None:
        """Remove a snapshot, unless a template, a sandbox or a checkpoint needs it. *Idempotent.*

        To be told after one who needed it is gone. Goes on to its end when cancelled.
        """
        await uninterrupted(self._lineages.release(id, named=self._named))

    def usage(self, owner: str) -> Usage:
        """Return what a tenant's own templates count as in its quota."""
        own = (each for each in self._entries.values() if owner_of(each.name) == owner)
        return Usage.total(each.usage for each in own)

    def resolve(self, name: str, *, owner: str) -> str:
        """Return the key of what a tenant calls by a name: its own goes before everybody's.

        One that was never ready stands in nobody's way.

        Raises:
            NotFoundError: `template_not_found`.
        """
        keys = key_of(name, owner), name
        for entries in (self._entries, self._coming):
            for key in keys:
                if key in entries and visible(key, owner):  # a name may be another's key
                    return key
        raise self._absent(name, owner)

    @property
    def statuses(self) -> list[TemplateStatus]:
        """All templates by name, those that are being made for the first time included."""
        entries = self._coming | self._entries
        return [entries[name].status for name in sorted(entries)]

    def status(self, name: str) -> TemplateStatus:
        """Return one template.

        Raises:
            NotFoundError: `template_not_found`.
        """
        return self._entry(name).status

    def pool(self, name: str) -> Pool[Clone]:
        """Return the pool of a template that is ready.

        Raises:
            NotFoundError: `template_not_found`.
            CapacityError: `template_being_made`.
            ConflictError: `template_not_ready`; it could not be made, with the reason.
        """
        entry = self._entry(name)
        if entry.pool is not None:
            return entry.pool
        if entry.error is not None:
            raise ConflictError(
                f"template {name!r} could not be made: {entry.error.message}",
                code="template_not_ready",
                remedy=entry.error.remedy,
            ) from entry.error
        raise CapacityError(
            f"template {name!r} is being made", code="template_being_made", remedy="try again later"
        )

    async def add(
        self, request: TemplateRequest, *, progress: Callable[[str], None]
    ) -> TemplateStatus:
        """Make a template ready: find or make its snapshot, fill its pool. *Idempotent.*

        A template of that name is replaced once the new one is ready; sandboxes of the old one live
        on. If this fails or is cancelled before, the old one stays.

        Raises:
            NotFoundError: `image_not_found`.
            ImageError: The image is damaged, or nobody vouches for it.
            InvalidRequestError: The machine or its limits are not possible.
            QuotaError: It is a tenant's own, and its spares are more than that may have.
            ConflictError: `template_busy`: another call makes it at this moment.
            CapacityError: `pool_closed`: the host is closing.
            EngineError, GuestError, DiskFullError: As `template.make`.
        """
        self._require_idle(request.key)
        image = self._ground.images.load(request.image)
        self._vouching.choice(image)
        entry = draft.requested(self._ground, request, image)
        return await self._add(entry, image, progress)

    async def offer(self, offer: Offer) -> TemplateStatus:
        """Have a snapshot that was made of a checkpoint under a name, as `add`. *Idempotent.*

        Whoever calls keeps the snapshot `wanted` meanwhile.

        Raises:
            SnapshotError: `snapshot_missing`; or it is damaged, or cannot run here.
            VmpoolError: As `add`.
        """
        self._require_idle(offer.key)
        found = await self._depot.find_fit(offer.snapshot)
        image = self._ground.images.load(found.manifest.image)
        entry = draft.offered(self._ground, offer, found, image.name)
        return await self._add(entry, image, lambda _: None)

    async def _add(
        self, entry: Entry, image: Image, progress: Callable[[str], None]
    ) -> TemplateStatus:
        quotas = self._ground.quotas
        await quotas.refresh()
        self._require_idle(entry.name)
        with quotas.take(owner_of(entry.name) or LOCAL, entry.usage):
            self._coming[entry.name] = entry
            try:
                await self._work(entry.name, self._make(entry, image, progress))
            finally:
                del self._coming[entry.name]
        return entry.status

    async def restore_saved(self, *, progress: Callable[[str], None]) -> None:
        """Bring up every template in the journal, in the background; failures stay visible."""
        store = self._ground.store
        image_names = {image.digest: image.name for image in await store.images()}
        for row in await store.templates():
            try:
                image = self._ground.images.load(row.image_digest)
            except VmpoolError as err:
                named = image_names[row.image_digest]
                entry = draft.recorded(self._ground, row, named, root=Path())
                self._fail(entry, err, progress)
            else:
                entry = draft.recorded(self._ground, row, image.name, root=image.root)
                self._begin(row.name, self._bring_up_saved(entry, image, row, progress))
            self._entries[row.name] = entry
        for id in await self._depot.unnamed():  # a crash left them, if nobody needs them
            await self.release_base(id)

    async def settled(self, name: str) -> TemplateStatus:
        """Return one template once it is no longer being made: ready or failed.

        Raises:
            NotFoundError: `template_not_found`.
        """
        self._entry(name)
        task = self._tasks.get(name)
        if task is not None:
            await asyncio.wait((task,))
        return self.status(name)

    async def remove(self, name: str) -> None:
        """Remove a template, and its snapshot unless somebody needs it. *Not idempotent.*

        Sandboxes and checkpoints of it live on. When cancelled, it is removed all the same.

        Raises:
            NotFoundError: `template_not_found`.
            ConflictError: `template_busy`.
            StoreError, DiskFullError: The journal could not take it; the template stays.
        """
        entry = self._entry(name)
        self._require_idle(name)
        await self._work(name, uninterrupted(self._remove(entry)))

    # One thing at a time is done with a template, by a task that `close` ends and awaits.

    def _require_idle(self, name: str) -> None:
        if self._closed:
            raise CapacityError("the host is closing", code="pool_closed")
        if name in self._tasks:
            raise ConflictError(
                f"template {name!r} is being made or removed by another call",
                code="template_busy",
                remedy="try again later",
            )

    def _begin(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"template {name}")
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name))
        return task

    async def _work(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Await work on a template; the caller's cancellation is the work's, and waits for it."""
        try:
            await self._begin(name, work)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if caller is None or caller.cancelling():
                raise
            raise CapacityError("the host is closing", code="pool_closed") from None

    async def _make(self, entry: Entry, image: Image, progress: Callable[[str], None]) -> None:
        pool = await self._bring_up(entry, image, progress)
        try:
            await self._record(entry)
        except BaseException:
            await pool.close()
            raise
        old, self._entries[entry.name] = self._entries.get(entry.name), entry
        self._show(entry.name, pool)
        if old is not None:
            await uninterrupted(self._retire(old))

    async def _bring_up_saved(
        self, entry: Entry, image: Image, row: TemplateRow, progress: Callable[[str], None]
    ) -> None:
        try:
            pool = await self._bring_up(entry, image, progress)
            self._show(entry.name, pool)
            if entry.snapshot_id != row.snapshot_id:  # of another QEMU: nothing will ask for it
                await self._record(entry)
                await self.release_base(row.snapshot_id)
        except Exception as err:  # noqa: BLE001 - the task's top: whatever failed, others serve
            self._fail(entry, err, progress)

    def _fail(self, entry: Entry, err: Exception, progress: Callable[[str], None]) -> None:
        known = isinstance(err, VmpoolError)
        log.error("template=%s: %s", entry.name, err, exc_info=None if known else err)
        progress(f"template {entry.name}: {err}")
        if entry.pool is None:
            entry.error = err if isinstance(err, VmpoolError) else InfrastructureError(str(err))

    async def _remove(self, entry: Entry) -> None:
        await self._ground.store.remove_template(entry.name)
        del self._entries[entry.name]
        self._ground.metrics.forget_pool(entry.name)
        await self._retire(entry)

    def _show(self, name: str, pool: Pool[Clone]) -> None:
        self._ground.metrics.watch_pool(
            name, lambda: pool.census, lambda: pool.aim, lambda: pool.counters
        )

    def _entry(self, name: str) -> Entry:
        entry = self._entries.get(name) or self._coming.get(name)
        if entry is None:
            raise self._absent(name_of(name), owner_of(name) or "")
        return entry

    def _absent(self, name: str, owner: str) -> NotFoundError:
        """Return, as an error to raise, that there is none, and what there is for a tenant."""
        known = sorted({name_of(key) for key in self._entries if visible(key, owner)})
        return NotFoundError(
            f"there is no template {name!r}",
            code="template_not_found",
            remedy=f"templates here: {', '.join(known)}"
            if known
            else "there is none yet: vmpool template create, or vmpool up",
        )

    async def _bring_up(
        self, entry: Entry, image: Image, progress: Callable[[str], None]
    ) -> Pool[Clone]:
        self._vouching.former_choice(image)
        await self._vouching.image(image)
        if entry.derived is not None:
            entry.snapshot = await self._depot.find_fit(entry.derived)
        else:
            entry.snapshot = await self._depot.find_or_make(
                image, entry.spec, needed=lambda: self._lineages.needed, progress=progress
            )
        entry.pool = await self._open_pool(entry.name, entry.snapshot, entry.limits)
        return entry.pool

    async def _account(self, name: str, base: Snapshot) -> Pool[Clone]:
        """Return a pool for what descends from a snapshot that no template names."""
        limits = self._ground.settings.pool.limits(clone_bytes=base.spec.memory_bytes)
        pool = await self._open_pool(name, base, limits.without_spares())
        await pool.withdraw()
        return pool

    async def _open_pool(self, name: str, base: Snapshot, limits: Limits) -> Pool[Clone]:
        ground = self._ground
        pool = Pool(
            name,
            restore=partial(self._restore, name, base),
            limits=limits,
            restores=ground.restores,
            restore_timeout=ground.settings.deadlines.restore,
            kill_timeout=ground.settings.deadlines.kill,
            on_acquire=partial(ground.metrics.acquired, name),
            on_rest=partial(ground.standby.keep, base, party=object()),
        )
        return await pool.__aenter__()

    async def _restore(self, name: str, base: Snapshot) -> Clone:
        ground = self._ground
        await self._vouching.base(base)
        waiting = await ground.standby.take(base)
        restored = await clone.restore_into(
            waiting, deadlines=ground.deadlines, dawn=ground.dawn, airtime=ground.airtime
        )
        phases = {
            phase.name.removesuffix("_ns"): getattr(restored.timings, phase.name)
            for phase in fields(restored.timings)
        }
        ground.metrics.restored(name, phases)
        return restored

    async def _record(self, entry: Entry) -> None:
        """Write a template that is ready, with its image, into the journal."""
        store = self._ground.store
        await store.save_image(
            ImageRow(
                digest=entry.digest,
                name=entry.image_name,
                size_bytes=entry.spec.root.stat().st_size,
                created_ns=time.time_ns(),
            )
        )
        await store.save_template(
            TemplateRow(
                name=entry.name,
                image_digest=entry.digest,
                snapshot_id=entry.snapshot_id,
                limits=asdict(entry.limits),
                memory_bytes=entry.spec.memory_bytes,
                vcpus=entry.spec.vcpus,
                disk_bytes=entry.spec.disk_bytes,
                created_ns=entry.created_ns,
                env=entry.env,
            )
        )

    async def _retire(self, entry: Entry) -> None:
        """Withdraw a pool that nothing names any more; what needs its snapshot keeps both."""
        if (lineage := entry.lineage) is not None:
            self._lineages.keep(lineage)
            await lineage.pool.withdraw()
        await self._ground.standby.ended(entry.snapshot_id)
        await self.release_base(entry.snapshot_id)

    def _named(self) -> set[str]:
        """Return the snapshots that templates are made, or being made, of."""
        entries = [*self._coming.values(), *self._entries.values()]
        return {entry.snapshot_id for entry in entries}
