"""Depot: the snapshots of a host's templates, each made once and checked before it is used.

It decides whether a snapshot on disk is what a template needs or has to be made again. It knows no
template by name and no pool; who still needs a snapshot, it is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from vmpool import fitness, snapshot, template
from vmpool.clone import claim_directory
from vmpool.errors import SnapshotError, VmpoolError
from vmpool.model import Attachment

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from pathlib import Path

    from vmpool.engine import Engine
    from vmpool.image import Image
    from vmpool.model import Accelerator, MachineSpec, Processor, Transport
    from vmpool.snapshot import Manifest, Snapshot
    from vmpool.trust import Custody

log = logging.getLogger(__name__)

IMPORTED = "imported"
"""What the id of a base begins with that came with a checkpoint: no template's has it."""

DERIVED = "derived"
"""What the id of a snapshot begins with that was made of a checkpoint: no image makes it again."""

_OF_USE = frozenset({"snapshot_unfit", "snapshot_processor_unfit", "snapshot_untrusted"})
"""Codes of a snapshot that is whole, and of use on another host or once its key is trusted."""


class Depot:
    """Snapshots by what they are made of.

    Args:
        snapshots: Directory of published snapshots.
        run: Directory that machines' directories are made in.
        boot_timeout: Seconds until the agent of a booting guest must have answered.
        custody: Says which of them to believe, and signs what is made.
        accelerators: Those that work on this host.
        transports: Those that it has.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        snapshots: Path,
        run: Path,
        boot_timeout: float,
        custody: Custody,
        accelerators: Collection[Accelerator],
        transports: Collection[Transport],
    ) -> None:
        self._engine = engine
        self._accelerators = accelerators
        self._transports = transports
        self._snapshots = snapshots
        self._run = run
        self._boot_timeout = boot_timeout
        self._custody = custody
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def find_or_make(
        self,
        image: Image,
        spec: MachineSpec,
        *,
        needed: Callable[[], Collection[str]],
        progress: Callable[[str], None],
    ) -> Snapshot:
        """Return the snapshot of `image` booted as `spec`, checked to its last byte, or make it.

        Callers for the same one wait for each other, and the second finds it. The spec is this
        host's own: a snapshot that was saved by another QEMU has another name.

        Args:
            needed: Names of snapshots that something descends from; asked when this one is there
                and cannot run here.

        Raises:
            SnapshotError: It cannot run here, and is needed where it can; nothing was removed.
            HostError: This host has not the spec's CPU model; code `cpu_model_unfit`.
            VmpoolError: As `template.make`.
        """
        name = template.snapshot_id(image.digest, spec)
        directory = self._snapshots / name
        processor = await self._processor(spec)
        async with self._lock(name):
            if await asyncio.to_thread(directory.exists):
                try:
                    return await asyncio.to_thread(
                        self._checked, directory, image.digest, spec, processor
                    )
                except VmpoolError as err:
                    if err.error_code in _OF_USE and name in needed():
                        raise
                    progress(f"{err.message}; making it again")
                    log.warning("snapshot=%s: %s; making it again", name, err)
                    await asyncio.to_thread(snapshot.discard, directory)
            return await template.make(
                self._engine,
                image,
                spec,
                snapshots=self._snapshots,
                run=self._run,
                boot_timeout=self._boot_timeout,
                progress=progress,
                publish=self._custody.publish,
            )

    async def find(self, name: str) -> Snapshot | None:
        """Return a snapshot that is there, checked to its last byte; `None` when there is none.

        Whether it fits this host, `require_fit` says: machines that run from it need not care.

        Raises:
            SnapshotError: It is damaged, or `snapshot_untrusted`.
        """
        directory = self._snapshots / name
        async with self._lock(name):
            if not await asyncio.to_thread(directory.exists):
                return None
            return await asyncio.to_thread(self._custody.load_verified, directory)

    async def find_fit(self, name: str) -> Snapshot:
        """Return a snapshot that is there, checked, and can run on this host.

        Raises:
            SnapshotError: `snapshot_missing`; or as `find` and `require_fit`.
            HostError: This host has not its CPU model; code `cpu_model_unfit`.
        """
        found = await self.find(name)
        if found is None:
            raise SnapshotError(f"there is no snapshot {name!r}", code="snapshot_missing")
        await self.require_fit(found)
        return found

    async def require_fit(self, stranger: Snapshot) -> None:
        """Refuse a snapshot that cannot run on this host; of its files none is read.

        Raises:
            SnapshotError: As `fitness.require_fit`.
            HostError: This host has not its CPU model; code `cpu_model_unfit`.
        """
        spec, version = stranger.spec, self._engine.version
        processors: dict[Accelerator, Processor] = {}
        if spec.qemu_version == version and spec.accelerator in self._accelerators:
            processors[spec.accelerator] = await self._processor(spec)
        fitness.require_fit(
            stranger, version=version, processors=processors, transports=self._transports
        )

    async def unnamed(self) -> list[str]:
        """Return the ids of the snapshots that no image is made into.

        They came with checkpoints, or were made of them, and only rows say who needs them.
        """
        return await asyncio.to_thread(
            lambda: sorted(
                path.name
                for path in self._snapshots.iterdir()
                if path.name.startswith((IMPORTED, DERIVED))
            )
        )

    async def sizes(self, *, but: Collection[str]) -> dict[str, int]:
        """Return the bytes on disk of every snapshot `but` some, by id."""
        return await asyncio.to_thread(self._sizes, but)

    def _sizes(self, but: Collection[str]) -> dict[str, int]:
        found = {}
        for directory in sorted(self._snapshots.iterdir()):
            if directory.name not in but and not directory.name.startswith(snapshot.PARTIAL):
                with contextlib.suppress(FileNotFoundError):  # it went meanwhile
                    files = list(directory.iterdir())
                    found[directory.name] = sum(file.stat().st_blocks * 512 for file in files)
        return found

    async def alike(self, base: Manifest) -> str | None:
        """Return the id of a snapshot here with the memory and disk of `base`, whatever its name.

        Of several one that has the id of `base`.
        """
        return await asyncio.to_thread(self._alike, base)

    def _alike(self, base: Manifest) -> str | None:
        found = []
        for directory in self._snapshots.iterdir():
            with contextlib.suppress(SnapshotError):
                manifest = snapshot.load(directory).manifest
                if _substance(manifest) == _substance(base):
                    found.append(manifest.id)
        return base.id if base.id in found else next(iter(sorted(found)), None)

    async def drop(self, name: str, *, needed: Callable[[], Collection[str]]) -> None:
        """Remove a snapshot unless it is needed; hypervisors that run from it live on.

        Args:
            needed: Names of snapshots that are in use or being found; asked at once, and again
                when nobody finds or makes this one.
        """
        if name in needed():
            return
        async with self._lock(name):
            if name in needed():
                return
            try:
                await asyncio.to_thread(snapshot.discard, self._snapshots / name)
            except OSError as err:  # the next start sweeps it
                log.error("snapshot=%s cannot be removed: %s", name, err)
            self._custody.forget(self._snapshots / name)

    async def _processor(self, spec: MachineSpec) -> Processor:
        with contextlib.ExitStack() as undo:
            directory = claim_directory(self._run)
            undo.callback(shutil.rmtree, directory, ignore_errors=True)
            return await self._engine.processor(spec, Attachment(directory=directory))

    def _checked(
        self, directory: Path, digest: str, spec: MachineSpec, processor: Processor
    ) -> Snapshot:
        found = self._custody.load(directory)
        fitness.require_fit(
            found,
            version=self._engine.version,
            processors={spec.accelerator: processor},
            transports={spec.transport},
        )
        if (found.manifest.image, found.spec) != (digest, spec):
            raise SnapshotError(
                f"snapshot {directory.name!r} is damaged: its manifest is not its own",
                code="snapshot_damaged",
            )
        self._custody.verify(found)
        return found

    def _lock(self, name: str) -> asyncio.Lock:
        """Return what keeps a snapshot from being made twice, or removed while it is found."""
        return self._locks.setdefault(name, asyncio.Lock())


def _substance(manifest: Manifest) -> dict[str, str]:
    """Return the digests of what a checkpoint is a difference from."""
    files = manifest.files
    return {name: files[name].digest for name in (snapshot.MEMORY, snapshot.DISK) if name in files}
