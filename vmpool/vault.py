"""Vault: the checkpoints of a host: what was kept of sandboxes, and what paused ones go on from.

A directory and a row each. The row counts: a directory without one is swept when a host starts, and
what is being restored from, nobody removes. It knows no machine and no pool; what a checkpoint is
the difference from, it only names.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from vmpool import egress, faults, snapshot
from vmpool.cancellation import uninterrupted
from vmpool.egress import UNCONNECTED, NetworkPolicy
from vmpool.errors import ConflictError, InvalidRequestError, NotFoundError
from vmpool.lifecycle import Keep
from vmpool.quota import Usage
from vmpool.store import CheckpointRow, IfTaken, Purpose

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmpool.checkpoint import Saved
    from vmpool.quotas import Quotas, Reservation
    from vmpool.snapshot import Manifest, Publish, Snapshot
    from vmpool.store import Store
    from vmpool.trust import Custody

log = logging.getLogger(__name__)

_COUNTED = {Purpose.KEPT: Usage(checkpoints=1), Purpose.PAUSE: Usage(paused=1)}

_WORD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_NAME = re.compile(f"{_WORD}(:{_WORD})?")

STEP: Final = "step."
"""What the name of a checkpoint begins with that a build made, and that builds believe."""


def check_own(name: str | None) -> None:
    """Refuse a name for a checkpoint that only a build's may have.

    Raises:
        InvalidRequestError: `checkpoint_name_invalid`.
    """
    if name is not None and name.startswith(STEP):
        raise InvalidRequestError(
            f"{name!r} begins as the names do of what builds keep of their steps",
            code="checkpoint_name_invalid",
            remedy=f"give another name, one that does not begin with {STEP!r}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A state that a sandbox was in.

    Attributes:
        name: Unique among its owner's; `None` for none.
        sandbox_id: Whose state it is; that sandbox may be gone.
        base_id: Of the snapshot that it is the difference from.
        created_ns: Unix time.
        dirty_bytes: Memory that differed from the base.
        size_bytes: Of its files; layers of disk that it shares with others count in each.
        key: What the agent in it obeys.
        saved_ns: What the guest's clock said.
        env: Environment of everything that ran in the sandbox; `secrets` are on top of it.
        network: What that might reach.
        keep: What of the sandbox it is.
    """

    id: str
    name: str | None
    owner: str
    sandbox_id: str
    template: str
    base_id: str
    created_ns: int
    dirty_bytes: int
    size_bytes: int
    purpose: Purpose
    key: bytes = field(repr=False)
    saved_ns: int
    env: dict[str, str] = field(default_factory=dict, repr=False)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    confided: bool = False
    network: NetworkPolicy = UNCONNECTED
    keep: Keep = Keep.MEMORY

    @property
    def is_confidential(self) -> bool:
        """Whether its memory may hold secrets, of its sandbox or of an execution in it."""
        return self.confided or bool(self.secrets)

    @classmethod
    def of(cls, row: CheckpointRow) -> Checkpoint:
        """Return a checkpoint that was recorded."""
        return cls(
            id=row.id,
            name=row.name,
            owner=row.owner,
            sandbox_id=row.sandbox_id,
            template=row.template,
            base_id=row.base_id,
            created_ns=row.created_ns,
            dirty_bytes=row.dirty_bytes,
            size_bytes=row.size_bytes,
            purpose=row.purpose,
            key=row.agent_key,
            saved_ns=row.saved_ns,
            env=row.env,
            secrets=row.secrets,
            confided=row.confided,
            network=egress.parse(row.network),
            keep=row.keep,
        )

    @property
    def row(self) -> CheckpointRow:
        """What is recorded of it."""
        return CheckpointRow(
            id=self.id,
            purpose=self.purpose,
            name=self.name,
            owner=self.owner,
            sandbox_id=self.sandbox_id,
            template=self.template,
            base_id=self.base_id,
            agent_key=self.key,
            created_ns=self.created_ns,
            saved_ns=self.saved_ns,
            dirty_bytes=self.dirty_bytes,
            size_bytes=self.size_bytes,
            env=self.env,
            secrets=self.secrets,
            confided=self.confided,
            network=egress.text(self.network),
            keep=self.keep,
        )


class Vault:
    """All checkpoints of a host; `open` before use.

    Args:
        directory: Where their directories are, and are written.
        quotas: How much an owner may have.
        custody: Says which of them to believe.

    Attributes:
        directory: As given.
        publish: Gives what was saved in `directory` its name, under this host's signature.
    """

    def __init__(self, directory: Path, store: Store, quotas: Quotas, custody: Custody) -> None:
        self.directory = directory
        self.publish: Publish = custody.publish
        self._custody = custody
        self._store = store
        self._quotas = quotas
        self._known: dict[str, Checkpoint] = {}
        self._going: set[str] = set()
        self._leases: dict[str, Counter[str]] = {}

    async def open(self) -> None:
        """Read what there is, and remove what a crash left between a row and its directory.

        Raises:
            StoreError, DiskFullError: The journal cannot be used.
        """
        there = await asyncio.to_thread(self._directories)
        for row in await self._store.checkpoints.all():
            if row.id in there:
                self._known[row.id] = Checkpoint.of(row)
            elif row.purpose is Purpose.KEPT:
                log.error("checkpoint=%s is gone from the disk", row.id)
                await self._store.checkpoints.remove(row.id)
        for id in there - self._known.keys():
            log.warning("removed checkpoint=%s, which was never told of", id)
            await asyncio.to_thread(shutil.rmtree, self.directory / id)

    @property
    def base_ids(self) -> set[str]:
        """The snapshots that checkpoints are the difference from."""
        return {checkpoint.base_id for checkpoint in self._known.values()}

    def has_paused(self, base_id: str) -> bool:
        """Whether sandboxes that descend from a snapshot are paused."""
        return any(
            (each.base_id, each.purpose) == (base_id, Purpose.PAUSE)
            for each in self._known.values()
        )

    def usage(self, owner: str) -> Usage:
        """Return what the checkpoints of `owner` count as in its quota."""
        mine = [each for each in self._known.values() if each.owner == owner]
        return Usage.total(
            replace(_COUNTED[each.purpose], disk_bytes=each.size_bytes) for each in mine
        )

    @property
    def tally(self) -> dict[str, int]:
        """How many bytes the checkpoints have, by purpose."""
        sizes = dict.fromkeys(map(str, Purpose), 0)
        for checkpoint in self._known.values():
            sizes[checkpoint.purpose] += checkpoint.size_bytes
        return sizes

    def of(self, owner: str, *, sandbox_id: str | None = None) -> list[Checkpoint]:
        """Return what `owner` keeps, of one sandbox or of all, newest first."""
        found = [
            each
            for each in self._known.values()
            if (each.owner, each.purpose) == (owner, Purpose.KEPT)
            and sandbox_id in {None, each.sandbox_id}
            and each.id not in self._going
        ]
        return sorted(found, key=lambda each: (each.created_ns, each.id), reverse=True)

    def find(self, id_or_name: str, *, owner: str) -> Checkpoint:
        """Return what `owner` keeps under an id or a name; an id goes before a name.

        Raises:
            NotFoundError: `checkpoint_not_found`; there is none, or it is somebody else's.
        """
        mine = self.of(owner)
        for each in [
            *(each for each in mine if each.id == id_or_name),
            *(each for each in mine if each.name == id_or_name),
        ]:
            return each
        raise NotFoundError(f"there is no checkpoint {id_or_name!r}", code="checkpoint_not_found")

    def pause_of(self, sandbox_id: str) -> Checkpoint | None:
        """Return what a paused sandbox goes on from."""
        return next(
            (
                each
                for each in self._known.values()
                if (each.sandbox_id, each.purpose) == (sandbox_id, Purpose.PAUSE)
            ),
            None,
        )

    @contextlib.contextmanager
    def room(
        self,
        owner: str,
        purpose: Purpose,
        name: str | None = None,
        *,
        most_bytes: int,
        if_taken: IfTaken = IfTaken.REFUSE,
    ) -> Iterator[Reservation]:
        """Keep room for one more checkpoint of `owner` while it is made.

        Args:
            most_bytes: What its files can take.
            if_taken: What becomes of the name when `owner` has given it already.

        Yields:
            What is counted for it until the block ends; or is given back, when it is noted.

        Raises:
            InvalidRequestError: `checkpoint_name_invalid`.
            ConflictError: `checkpoint_exists`; `owner` has one of that name, which stays there.
            QuotaError: `owner` has as many, or as much, as it may.
        """
        if name is not None:
            _require_fit(name)
            if if_taken is IfTaken.REFUSE:
                self._require_free(owner, name)
        demand = replace(_COUNTED[purpose], disk_bytes=most_bytes)
        with self._quotas.take(owner, demand) as reservation:
            yield reservation

    async def keep(self, checkpoint: Checkpoint, if_taken: IfTaken = IfTaken.REFUSE) -> None:
        """Record what was saved in `directory`, or remove it when the journal does not take it.

        Args:
            if_taken: What becomes of its name when its owner has given it already.

        Raises:
            ConflictError: `checkpoint_exists`.
            StoreError, DiskFullError: The journal could not take it.
        """
        faults.reach("checkpoint.saved")
        try:
            await self._store.checkpoints.record(checkpoint.row, if_taken)
        except BaseException:
            await self.discard(checkpoint.id)
            raise
        faults.reach("checkpoint.recorded")
        if if_taken is IfTaken.MOVE:
            self._unname(checkpoint)
        self.note(checkpoint)

    def _unname(self, heir: Checkpoint) -> None:
        """Have whichever checkpoint had another's name go without one, as the journal has it."""
        for each in list(self._known.values()):
            if heir.name is not None and (each.owner, each.name) == (heir.owner, heir.name):
                self._known[each.id] = replace(each, name=None)

    def note(self, checkpoint: Checkpoint) -> None:
        """Know of a checkpoint that was recorded."""
        self._known[checkpoint.id] = checkpoint

    async def load(self, checkpoint: Checkpoint) -> Snapshot:
        """Read a checkpoint's manifest, and its files unless they are known to be right.

        Raises:
            SnapshotError: It is damaged or gone, or `snapshot_untrusted`.
        """
        directory = self.directory / checkpoint.id
        return await asyncio.to_thread(self._custody.load_verified, directory)

    @contextlib.contextmanager
    def lent(self, checkpoint: Checkpoint, *, to: str) -> Iterator[None]:
        """Keep a checkpoint from being removed while sandbox `to` is restored from it.

        Raises:
            NotFoundError: `checkpoint_not_found`; it was removed meanwhile.
        """
        if checkpoint.id not in self._known or checkpoint.id in self._going:
            raise NotFoundError(
                f"there is no checkpoint {checkpoint.id!r}", code="checkpoint_not_found"
            )
        users = self._leases.setdefault(checkpoint.id, Counter())
        users[to] += 1
        try:
            yield
        finally:
            users[to] -= 1
            if not +users:
                self._leases.pop(checkpoint.id, None)

    async def remove(self, checkpoint: Checkpoint) -> None:
        """Remove a checkpoint that is kept. *Idempotent*; once begun it goes on when cancelled.

        Raises:
            ConflictError: `checkpoint_in_use`, with the sandboxes that are restored from it now.
            StoreError, DiskFullError: The journal could not take it; the checkpoint stays.
        """
        users = sorted(+self._leases.get(checkpoint.id, Counter()))
        if users:
            raise ConflictError(
                f"checkpoint {checkpoint.id!r} is being restored from, for {', '.join(users)}",
                code="checkpoint_in_use",
                remedy="try again in a moment",
            )
        self._going.add(checkpoint.id)
        await uninterrupted(self._remove(checkpoint.id))

    async def _remove(self, id: str) -> None:
        try:
            faults.reach("remove.begun")
            await self._store.checkpoints.remove(id)
            faults.reach("remove.recorded")
            await self.discard(id)
            faults.reach("remove.discarded")
        finally:
            self._going.discard(id)

    async def discard(self, id: str) -> None:
        """Remove the directory of what has no row. *Idempotent*; goes on when cancelled."""
        self._known.pop(id, None)
        try:
            await uninterrupted(asyncio.to_thread(snapshot.discard, self.directory / id))
        except OSError as err:  # the next start sweeps it
            log.error("checkpoint=%s cannot be removed: %s", id, err)
        self._custody.forget(self.directory / id)

    def _require_free(self, owner: str, name: str) -> None:
        if any(each.name == name for each in self.of(owner)):
            raise ConflictError(
                f"there is a checkpoint {name!r} already",
                code="checkpoint_exists",
                remedy="remove it first, or choose another name",
            )

    def _directories(self) -> set[str]:
        """Return the ids that have a directory, after removing what is half-written."""
        for left in snapshot.sweep(self.directory):
            log.warning("removed a half-written checkpoint %s", left.name)
        return {path.name for path in self.directory.iterdir()}


def kept_of(manifest: Manifest) -> Keep:
    """Return what of a sandbox a checkpoint is."""
    return Keep.MEMORY if snapshot.DEVICE_STATE in manifest.files else Keep.DISK


def _require_fit(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise InvalidRequestError(
            f"{name!r} is no name for a checkpoint",
            code="checkpoint_name_invalid",
            remedy="use up to 64 letters, digits, dots, dashes and underscores, and the same"
            " for a tag behind a colon",
        )


def checkpoint_of(
    saved: Saved,
    *,
    purpose: Purpose,
    name: str | None,
    owner: str,
    sandbox_id: str,
    template: str,
    key: bytes,
    clock_offset_ns: int,
    env: dict[str, str],
    secrets: dict[str, str],
    confided: bool,
    network: NetworkPolicy,
) -> Checkpoint:
    """Return what was saved of a sandbox as a checkpoint.

    Args:
        clock_offset_ns: The guest's clock minus the host's.
    """
    manifest = saved.snapshot.manifest
    assert manifest.base is not None
    return Checkpoint(
        id=manifest.id,
        name=name,
        owner=owner,
        sandbox_id=sandbox_id,
        template=template,
        base_id=manifest.base.id,
        created_ns=manifest.created_ns,
        dirty_bytes=saved.dirty_bytes,
        size_bytes=sum(file.size_bytes for file in manifest.files.values()),
        purpose=purpose,
        key=key,
        saved_ns=manifest.created_ns + clock_offset_ns,
        env=env,
        secrets=secrets,
        confided=confided,
        network=network,
        keep=kept_of(manifest),
    )
