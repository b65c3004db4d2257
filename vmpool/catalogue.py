"""Catalogue: the templates that a host offers, each with its snapshot and its pool.

It decides when a template's snapshot can be used, when it has to be made again, and what becomes
of a pool whose template is replaced or removed. It knows no sandbox: pools give clones to whoever
asks.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool import clone, snapshot, template
from vmpool.clone import Clone, RestoreDeadlines
from vmpool.config import PoolSettings, Settings
from vmpool.engine import Engine
from vmpool.errors import ConflictError, InvalidRequestError, NotFoundError, VmpoolError
from vmpool.image import Image, Library
from vmpool.metrics import Metrics
from vmpool.model import MIB, Accelerator, MachineSpec, Transport
from vmpool.policy import Census, Limits
from vmpool.pool import Pool
from vmpool.store import ImageRow, Store, TemplateRow

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool.snapshot import Snapshot

log = logging.getLogger(__name__)


class TemplateState(StrEnum):
    """Whether a template can be used."""

    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What templates stand on: the same for all of a host.

    Attributes:
        snapshots: Directory of published snapshots.
        clones: Directory that machines' directories are made in.
        restores: Shared by all pools: restores that may run at one time.
    """

    engine: Engine
    accelerator: Accelerator
    transport: Transport
    images: Library
    store: Store
    metrics: Metrics
    snapshots: Path
    clones: Path
    settings: Settings
    deadlines: RestoreDeadlines
    restores: asyncio.Semaphore


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateRequest:
    """What a template is to be; `None` leaves it to the image's recipe.

    Attributes:
        image: Name or digest of an image in the library.
    """

    name: str
    image: str
    limits: Limits | None = None
    memory_bytes: int | None = None
    vcpus: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateStatus:
    """One template at one moment.

    Attributes:
        image: Digest of its image; `image_name` is what that was called.
        snapshot: Id of its snapshot, `None` until there is one.
        error: Why it failed, or why its pool cannot restore at present; empty otherwise.
        created_ns: Unix time.
    """

    name: str
    image: str
    image_name: str
    snapshot: str | None
    spec: MachineSpec
    limits: Limits
    census: Census
    state: TemplateState
    error: str
    created_ns: int


class _Entry:
    """One template: what was asked, what came of it, and its pool once there is one."""

    def __init__(self, *, name: str, image: Image, spec: MachineSpec, limits: Limits) -> None:
        self.name = name
        self.image = image
        self.spec = spec
        self.limits = limits
        self.created_ns = time.time_ns()
        self.snapshot: Snapshot | None = None
        self.pool: Pool[Clone] | None = None
        self.error: VmpoolError | None = None

    @property
    def state(self) -> TemplateState:
        if self.pool is not None:
            return TemplateState.READY
        return TemplateState.FAILED if self.error is not None else TemplateState.BUILDING

    @property
    def status(self) -> TemplateStatus:
        trouble = self.error or (self.pool.last_error if self.pool is not None else None)
        return TemplateStatus(
            name=self.name,
            image=self.image.digest,
            image_name=self.image.name,
            snapshot=self.snapshot.manifest.id if self.snapshot is not None else None,
            spec=self.spec,
            limits=self.limits,
            census=self.pool.census if self.pool is not None else Census(),
            state=self.state,
            error=str(trouble) if trouble is not None else "",
            created_ns=self.created_ns,
        )


class Catalogue:
    """The templates of a host. An async context manager; leaving it closes every pool."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._entries: dict[str, _Entry] = {}
        self._building: dict[str, asyncio.Task[None]] = {}

    async def close(self) -> None:
        """Stop what is being built and close every pool. *Idempotent.*"""
        building = list(self._building.values())
        for task in building:
            task.cancel()
        await asyncio.gather(*building, return_exceptions=True)
        pools = [entry.pool for entry in self._entries.values() if entry.pool is not None]
        await asyncio.gather(*(pool.close() for pool in pools))

    @property
    def statuses(self) -> list[TemplateStatus]:
        """All templates by name."""
        return [self._entries[name].status for name in sorted(self._entries)]

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
            ConflictError: `template_not_ready`, with the reason when it failed.
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
        raise ConflictError(
            f"template {name!r} is being made", code="template_not_ready", remedy="try again later"
        )

    def image_users(self, digest: str) -> list[str]:
        """Return the names of the templates made from an image."""
        return sorted(
            entry.name for entry in self._entries.values() if entry.image.digest == digest
        )

    async def add(
        self, request: TemplateRequest, *, progress: Callable[[str], None]
    ) -> TemplateStatus:
        """Make a template ready: find or make its snapshot, fill its pool. *Idempotent.*

        A template of that name is replaced once the new one is ready; sandboxes of the old one live
        on. If this is cancelled, the old one stays.

        Raises:
            ImageError: `image_not_found`, or the image is damaged.
            InvalidRequestError: The machine or its limits are not possible.
            ConflictError: `template_busy`: another call makes it at this moment.
            EngineError, GuestError, DiskFullError: As `template.make`.
        """
        if request.name in self._building:
            raise ConflictError(
                f"template {request.name!r} is being made by another call", code="template_busy"
            )
        entry = self._new_entry(request)
        task = asyncio.ensure_future(self._bring_up(entry, progress))
        self._building[request.name] = task
        try:
            await task
            await self._record(entry)
        except BaseException:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if entry.pool is not None:
                await entry.pool.close()
            raise
        finally:
            del self._building[request.name]
        old, self._entries[entry.name] = self._entries.get(entry.name), entry
        if old is not None:
            await self._retire(old)
        return entry.status

    async def restore_saved(self, *, progress: Callable[[str], None]) -> None:
        """Bring up every template in the journal, in the background; failures stay visible."""
        for row in await self._ground.store.templates():
            try:
                entry = self._saved_entry(row)
            except VmpoolError as err:
                log.error("template=%s cannot be used: %s", row.name, err)
                progress(f"template {row.name}: {err}")
                continue
            self._entries[row.name] = entry
            task = asyncio.create_task(self._bring_up_behind(entry, progress))
            self._building[row.name] = task
            task.add_done_callback(partial(self._built, row.name))

    async def settled(self, name: str) -> TemplateStatus:
        """Return one template once it is no longer being made: ready or failed.

        Raises:
            NotFoundError: `template_not_found`.
        """
        self._entry(name)
        building = self._building.get(name)
        if building is not None:
            await asyncio.wait((building,))
        return self.status(name)

    async def remove(self, name: str) -> None:
        """Remove a template and its snapshot; sandboxes of it live on. *Not idempotent.*

        Raises:
            NotFoundError: `template_not_found`.
            ConflictError: `template_busy`.
        """
        entry = self._entry(name)
        if name in self._building:
            raise ConflictError(f"template {name!r} is being made", code="template_busy")
        del self._entries[name]
        await self._ground.store.remove_template(name)
        await self._retire(entry)

    def _built(self, name: str, _: asyncio.Task[None]) -> None:
        del self._building[name]

    def _entry(self, name: str) -> _Entry:
        entry = self._entries.get(name)
        if entry is None:
            known = ", ".join(sorted(self._entries)) or "none"
            raise NotFoundError(
                f"there is no template {name!r}",
                code="template_not_found",
                remedy=f"templates here: {known}",
            )
        return entry

    def _new_entry(self, request: TemplateRequest) -> _Entry:
        image = self._ground.images.load(request.image)
        defaults = image.defaults
        memory_bytes = request.memory_bytes or defaults.memory_bytes
        if memory_bytes % MIB:
            raise InvalidRequestError(
                f"memory of {memory_bytes} bytes is no multiple of 1 MiB", code="invalid_machine"
            )
        spec = MachineSpec(
            root=image.root,
            memory_bytes=memory_bytes,
            accelerator=self._ground.accelerator,
            transport=self._ground.transport,
            vcpus=request.vcpus or defaults.vcpus,
            disk_bytes=defaults.disk_bytes if request.disk_bytes is None else request.disk_bytes,
            cpu_model=_cpu_model(self._ground.accelerator),
            qemu_version=self._ground.engine.version,
        )
        limits = request.limits or self._limits(request.name, defaults.ready)
        limits = replace(limits, clone_bytes=memory_bytes)
        return _Entry(name=request.name, image=image, spec=spec, limits=limits)

    def _limits(self, name: str, ready: int) -> Limits:
        """Return the settings' limits for a template; where they say nothing, the recipe's."""
        settings = self._ground.settings
        pool = settings.pool_of(name)
        if pool == PoolSettings():
            return replace(pool.limits(clone_bytes=0), ready=ready)
        return pool.limits(clone_bytes=0)

    def _saved_entry(self, row: TemplateRow) -> _Entry:
        return self._new_entry(
            TemplateRequest(
                name=row.name,
                image=row.image_digest,
                limits=Limits(**row.limits),
                memory_bytes=row.memory_bytes,
                vcpus=row.vcpus,
                disk_bytes=row.disk_bytes,
            )
        )

    async def _bring_up_behind(self, entry: _Entry, progress: Callable[[str], None]) -> None:
        try:
            await self._bring_up(entry, progress)
        except VmpoolError as err:
            entry.error = err
            log.error("template=%s cannot be used: %s", entry.name, err)
            progress(f"template {entry.name}: {err}")

    async def _bring_up(self, entry: _Entry, progress: Callable[[str], None]) -> None:
        ground = self._ground
        entry.snapshot = await self._find_or_make(entry, progress)
        pool = Pool(
            entry.name,
            restore=partial(self._restore, entry.name, entry.snapshot),
            limits=entry.limits,
            restores=ground.restores,
            restore_timeout=ground.settings.deadlines.restore,
            kill_timeout=ground.settings.deadlines.kill,
            on_acquire=partial(ground.metrics.acquired, entry.name),
        )
        await pool.__aenter__()
        entry.pool = pool
        ground.metrics.watch_pool(entry.name, lambda: pool.census, lambda: pool.counters)

    async def _restore(self, name: str, base: Snapshot) -> Clone:
        ground = self._ground
        restored = await clone.restore(
            ground.engine, base, run=ground.clones, deadlines=ground.deadlines
        )
        phases = {
            phase.name.removesuffix("_ns"): getattr(restored.timings, phase.name)
            for phase in fields(restored.timings)
        }
        ground.metrics.restored(name, phases)
        return restored

    async def _find_or_make(self, entry: _Entry, progress: Callable[[str], None]) -> Snapshot:
        """Return the snapshot of this image and machine, checked, or make it."""
        ground = self._ground
        directory = ground.snapshots / template.snapshot_id(entry.image.digest, entry.spec)
        if await asyncio.to_thread(directory.exists):
            try:
                return await asyncio.to_thread(self._checked, directory)
            except VmpoolError as err:
                progress(f"template {entry.name}: {err}; making it again")
                log.warning("template=%s: %s; making it again", entry.name, err)
                await asyncio.to_thread(snapshot.discard, directory)
        await ground.images.verify(entry.image)
        return await template.make(
            ground.engine,
            entry.image,
            entry.spec,
            snapshots=ground.snapshots,
            run=ground.clones,
            boot_timeout=ground.settings.deadlines.boot,
            progress=progress,
        )

    def _checked(self, directory: Path) -> Snapshot:
        found = snapshot.load(directory)
        found.fits(
            version=self._ground.engine.version,
            accelerators={self._ground.accelerator},
            transports={self._ground.transport},
        )
        found.verify()
        return found

    async def _record(self, entry: _Entry) -> None:
        """Write a template that is ready, with its image, into the journal."""
        assert entry.snapshot is not None
        image, store = entry.image, self._ground.store
        await store.save_image(
            ImageRow(
                digest=image.digest,
                name=image.name,
                size_bytes=image.root.stat().st_size,
                created_ns=time.time_ns(),
            )
        )
        await store.save_template(
            TemplateRow(
                name=entry.name,
                image_digest=image.digest,
                snapshot_id=entry.snapshot.manifest.id,
                limits=asdict(entry.limits),
                memory_bytes=entry.spec.memory_bytes,
                vcpus=entry.spec.vcpus,
                disk_bytes=entry.spec.disk_bytes,
                created_ns=entry.created_ns,
            )
        )

    async def _retire(self, entry: _Entry) -> None:
        """Close a pool that nothing names any more; remove its snapshot unless another uses it."""
        if entry.pool is not None:
            await entry.pool.close()
        used = {
            other.snapshot.directory
            for other in self._entries.values()
            if other.snapshot is not None
        }
        if entry.snapshot is not None and entry.snapshot.directory not in used:
            await asyncio.to_thread(entry.snapshot.remove)


def _cpu_model(accelerator: Accelerator) -> str:
    """Return the model that gives a guest all that the accelerator has."""
    match accelerator:
        case Accelerator.KVM:
            return "host"
        case Accelerator.TCG:
            return "max"
