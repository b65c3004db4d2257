"""Shipping: checkpoints that leave a host as parcels, and those that come in.

What comes in gets a name of its own here, and so does a base that comes with it: no template is
ever made of one. Its machine is this host's: of the parcel, only files and the words of its row are
kept. The guest's memory and devices are believed, which is why it must be signed by a host that
this one trusts, and why importing is for those who may also choose what the hypervisor runs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
from dataclasses import replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from msgspec import structs

from vmpool import disk, snapshot, trust
from vmpool.cancellation import uninterrupted
from vmpool.depot import IMPORTED
from vmpool.errors import ConflictError, InfrastructureError, NotFoundError, SnapshotError
from vmpool.parcel import Envelope, State, Unpacking, pack
from vmpool.parcel.envelope import damaged
from vmpool.snapshot import Snapshot
from vmpool.store import Purpose
from vmpool.vault import Checkpoint, check_own, kept_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from vmpool.catalogue import Catalogue
    from vmpool.ground import Ground
    from vmpool.snapshot import Manifest
    from vmpool.vault import Vault


class Cargo(StrEnum):
    """What of a checkpoint goes into a parcel."""

    DELTA = "delta"
    """Its own files; whoever imports it has its base already."""
    WITH_BASE = "with_base"
    """The files of its base too; whoever imports it has its image."""


class Confidence(StrEnum):
    """Whether the memory of a sandbox that was told secrets goes into a parcel."""

    KEEP = "keep"
    """It does not: the export is refused."""
    SHARE = "share"
    """It does, and whoever has the parcel has them."""


class Shipping:
    """Exports and imports the checkpoints of a host."""

    def __init__(self, ground: Ground, *, catalogue: Catalogue, vault: Vault) -> None:
        self._ground = ground
        self._catalogue = catalogue
        self._vault = vault

    async def export(
        self, kept: Checkpoint, cargo: Cargo, confidence: Confidence
    ) -> AsyncGenerator[bytes, None]:
        """Yield a checkpoint as a parcel; it is not removed meanwhile.

        The secrets that its sandbox was told are not in the parcel's words, in any case; what the
        guest's memory has of them is in its memory.

        Raises:
            ConflictError: `checkpoint_secret`; as `refusal`.
            NotFoundError: `checkpoint_not_found`; it was removed before.
            SnapshotError: `base_missing`, or it is damaged.
        """
        if (refused := refusal(kept, confidence)) is not None:
            raise refused
        with self._vault.lent(kept, to="export"):
            state = await self._vault.load(kept)
            assert state.manifest.base is not None
            base = (await self._catalogue.lineage(state.manifest.base)).snapshot
            envelope = Envelope(
                checkpoint=state.manifest,
                base=base.manifest,
                with_base=cargo is Cargo.WITH_BASE,
                state=_state(kept),
            )
            sign = partial(self._ground.custody.keyring.own.sign, trust.Purpose.PARCEL)
            pieces = pack(envelope, state, base, sign=sign)
            # Not cut short: a generator that runs in a thread cannot be closed.
            while piece := await uninterrupted(asyncio.to_thread(next, pieces, b"")):
                yield piece

    async def take_in(
        self,
        chunks: AsyncIterator[bytes],
        *,
        id: str,
        owner: str,
        name: str | None,
        believing: str | None,
    ) -> Checkpoint:
        """Keep the checkpoint in a parcel; on failure and when cancelled nothing is left of it.

        Args:
            id: A new one, which it gets.
            name: What it is called here; `None` for what it was called.
            believing: A key to trust for this once, beside those of the host.

        Raises:
            InvalidRequestError: `parcel_damaged`, `checkpoint_name_invalid`, `key_invalid`.
            TooLargeError: `parcel_too_large`.
            ConflictError: `checkpoint_exists`.
            QuotaError: Its owner has as many checkpoints, or as much, as it may.
            NotFoundError: `image_not_found`; its base needs it.
            SnapshotError: `snapshot_untrusted`, `base_missing`; or it does not fit this host.
            DiskFullError: There is no room for it.
            StoreError: The journal could not take it.
        """
        limit = self._ground.settings.checkpoints.import_bytes
        require = partial(
            self._ground.custody.keyring.require,
            trust.Purpose.PARCEL,
            of="the exported checkpoint",
            also=believing,
        )
        parcel = Unpacking(chunks, limit_bytes=limit, require=require)
        envelope = await parcel.envelope()
        name = envelope.state.name if name is None else name
        check_own(name)
        await self._ground.quotas.refresh()
        size_bytes = sum(file.size_bytes for file in envelope.checkpoint.files.values())
        with self._vault.room(owner, Purpose.KEPT, name, most_bytes=size_bytes):
            here = await self._catalogue.alike(envelope.base)
            base_id = here or _imported_id(envelope.base)
            try:
                with self._catalogue.wanted(base_id):
                    if here is None:
                        await self._take_in_base(parcel, envelope, base_id)
                    elif envelope.with_base:
                        await parcel.files("base", envelope.base, into=None)
                    lineage = await self._catalogue.lineage(base_id)
                    manifest = _grafted(envelope.checkpoint, lineage.snapshot, id)
                    kept = _checkpoint(envelope, manifest, owner, name)
                    await self._take_in_rest(parcel, envelope, manifest, kept)
                    return kept
            finally:
                await self._catalogue.release_base(base_id)

    async def _take_in_base(self, parcel: Unpacking, envelope: Envelope, id: str) -> None:
        """Publish the base that comes with a checkpoint, under a name that no template has."""
        if not envelope.with_base:
            raise _base_missing(envelope)
        manifest = await self._domesticated(envelope.base, id)
        async with self._partial(self._ground.snapshots) as beside:
            await parcel.files("base", envelope.base, into=beside)
            with contextlib.suppress(ConflictError):  # who was faster has the same
                await self._publish(beside, manifest, self._ground.snapshots)

    async def _take_in_rest(
        self, parcel: Unpacking, envelope: Envelope, manifest: Manifest, kept: Checkpoint
    ) -> None:
        async with self._partial(self._vault.directory) as beside:
            await parcel.files("checkpoint", envelope.checkpoint, into=beside)
            await parcel.end()
            published = Snapshot(directory=beside, manifest=manifest)
            await asyncio.to_thread(_require_plain_layers, published)
            await uninterrupted(self._keep(beside, kept, manifest))

    async def _keep(self, beside: Path, kept: Checkpoint, manifest: Manifest) -> None:
        await self._publish(beside, manifest, self._vault.directory)
        await self._vault.keep(kept)

    async def _publish(self, beside: Path, manifest: Manifest, parent: Path) -> None:
        """Check every file that came against its digest, then give all of them their name.

        Raises:
            InvalidRequestError: `parcel_damaged`.
        """

        def verify_and_publish() -> None:
            try:
                Snapshot(directory=beside, manifest=manifest).verify()
            except SnapshotError as err:
                damaged(err.message.replace(str(beside), "parcel"))
            self._ground.custody.publish(beside, manifest, parent)

        await uninterrupted(asyncio.to_thread(verify_and_publish))

    async def _domesticated(self, base: Manifest, id: str) -> Manifest:
        """Return the manifest of a stranger's base as it would be had this host made it.

        Raises:
            NotFoundError: `image_not_found`.
            ImageError: The image is damaged.
            SnapshotError: It does not fit this host.
        """
        ground = self._ground
        image = ground.images.load(base.image)
        if image.digest != base.image:
            raise NotFoundError(f"no image {base.image!r}", code="image_not_found")
        await ground.images.verify(image)
        spec = replace(base.spec, root=_seen_from(ground.snapshots / id, image.root))
        manifest = structs.replace(base, id=id, spec=spec)
        stranger = Snapshot(directory=ground.snapshots / id, manifest=manifest)
        await self._catalogue.require_fit(stranger)
        if ground.engine.shape(replace(stranger.spec, shape="")) != base.spec.shape:
            raise SnapshotError(
                f"snapshot {base.id!r} is of a machine that this vmpool makes otherwise",
                code="snapshot_unfit",
                remedy="use the vmpool that exported it",
            )
        return manifest

    @contextlib.asynccontextmanager
    async def _partial(self, parent: Path) -> AsyncIterator[Path]:
        """Yield a directory to publish from; what was not published is gone after the block."""
        beside = await asyncio.to_thread(snapshot.begin, parent)
        try:
            yield beside
        finally:
            await uninterrupted(asyncio.to_thread(shutil.rmtree, beside, ignore_errors=True))


def refusal(kept: Checkpoint, confidence: Confidence) -> ConflictError | None:
    """Return, as an error to raise, why a checkpoint is not exported; `None` when it may be."""
    if not kept.is_confidential or confidence is Confidence.SHARE:
        return None
    return ConflictError(
        f"checkpoint {kept.id!r} is of a sandbox that was told secrets, and its memory may hold"
        " them",
        code="checkpoint_secret",
        remedy="export it with its secrets, to who may have them: --with-secrets",
    )


def _require_plain_layers(checkpoint: Snapshot) -> None:
    """Refuse layers of disk that name other files: a hypervisor would open them.

    Raises:
        InvalidRequestError: `parcel_damaged`.
    """
    for layer in checkpoint.layers:
        with layer.open("rb") as file:
            head = file.read(disk.HEADER_BYTES)
        try:
            disk.require_plain(head, checkpoint.manifest.spec.disk_bytes)
        except InfrastructureError as err:
            damaged(err.message)


def _grafted(checkpoint: Manifest, base: Snapshot, id: str) -> Manifest:
    """Return a manifest for the files of a stranger's checkpoint on a machine that is ours."""
    return structs.replace(
        base.manifest,
        id=id,
        files=checkpoint.files,
        created_ns=checkpoint.created_ns,
        base=base.as_base,
    )


def _imported_id(base: Manifest) -> str:
    """Return the name of a base that came with a checkpoint: of all that it says, and no other's.

    The name that it had is one that a template here may have, or get, for a snapshot of its own.
    """
    said = msgspec.json.encode(base, enc_hook=str, order="deterministic")
    return f"{IMPORTED}{hashlib.sha256(said).hexdigest()[:20]}"


def _seen_from(directory: Path, path: Path) -> Path:
    """Return `path` relative to `directory`: a state directory that was moved is still whole."""
    return Path(os.path.relpath(path, directory))


def _state(kept: Checkpoint) -> State:
    return State(
        name=kept.name,
        sandbox_id=kept.sandbox_id,
        template=kept.template,
        key=kept.key.hex(),
        dirty_bytes=kept.dirty_bytes,
        saved_ns=kept.saved_ns,
        env=kept.env,
    )


def _checkpoint(envelope: Envelope, manifest: Manifest, owner: str, name: str | None) -> Checkpoint:
    state = envelope.state
    assert manifest.base is not None
    return Checkpoint(
        id=manifest.id,
        name=name,
        owner=owner,
        sandbox_id=state.sandbox_id,
        template=state.template,
        base_id=manifest.base.id,
        created_ns=manifest.created_ns,
        dirty_bytes=state.dirty_bytes,
        size_bytes=sum(file.size_bytes for file in manifest.files.values()),
        purpose=Purpose.KEPT,
        key=bytes.fromhex(state.key),
        saved_ns=state.saved_ns,
        env=state.env,
        keep=kept_of(manifest),
    )


def _base_missing(envelope: Envelope) -> SnapshotError:
    base = envelope.base
    return SnapshotError(
        f"the base snapshot {base.id!r} of template {envelope.state.template!r} and image "
        f"{base.image[:12]!r}, with the memory that the checkpoint was made against, "
        "is not on this host",
        code="base_missing",
        remedy="export the checkpoint with its base: vmpool checkpoint export --with-base",
    )
