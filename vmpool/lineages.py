"""Lineages: the base snapshots that outlive their templates, with the pools of what descends.

A sandbox, a paused one and a checkpoint are differences from the snapshot of a template, which may
be removed, or made anew, before they are. Then the snapshot stays until nobody needs it, and a pool
that gives out no clones accounts for those that run. It knows no sandbox: who needs what, it asks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmpool.clone import Clone
from vmpool.errors import SnapshotError
from vmpool.pool import Pool
from vmpool.snapshot import Base, Snapshot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterator

    from vmpool.depot import Depot


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What machines descend from.

    Attributes:
        snapshot: The base.
        pool: Has their places.
        template: The name that the snapshot has or had; its id where no name is known.
    """

    snapshot: Snapshot
    pool: Pool[Clone]
    template: str

    def require(self, base: Base | str) -> Lineage:
        """Return this lineage for what was written against `base`.

        Raises:
            SnapshotError: `base_missing`; the snapshot of that id was made anew since.
        """
        if isinstance(base, Base) and base != self.snapshot.as_base:
            raise _missing(base.id, "was made again, with other memory")
        return self


class Lineages:
    """Snapshots that no template names, as long as somebody needs them.

    Args:
        depot: Has the snapshots.
        open_pool: Makes a pool for what descends from a snapshot, under a name.

    Attributes:
        in_use: Ids of the snapshots that sandboxes and checkpoints need; given by who has them.
    """

    def __init__(
        self, depot: Depot, open_pool: Callable[[str, Snapshot], Awaitable[Pool[Clone]]]
    ) -> None:
        self.in_use: Callable[[], Collection[str]] = frozenset
        self._depot = depot
        self._open_pool = open_pool
        self._kept: list[Lineage] = []
        self._fit: set[str] = set()
        self._finding = asyncio.Lock()
        self._wanted: Counter[str] = Counter()

    @property
    def needed(self) -> set[str]:
        """Ids of the snapshots that somebody needs, whether a template names them or not."""
        held = (each.snapshot.manifest.id for each in self._kept if _held(each))
        return {*self.in_use(), *+self._wanted, *held}

    def keep(self, lineage: Lineage) -> None:
        """Have a lineage whose template is gone; `release` closes its pool one day."""
        self._kept.append(lineage)

    @contextlib.contextmanager
    def wanted(self, id: str) -> Iterator[None]:
        """Count a snapshot as needed for as long as the block lasts, also one that comes yet."""
        self._wanted[id] += 1
        try:
            yield
        finally:
            self._wanted[id] -= 1

    async def find(self, base: Base | str) -> Lineage:
        """Return a lineage that no template names; its snapshot is checked when first asked for.

        Raises:
            SnapshotError: `base_missing` when there is no such snapshot, or another one of that
                name; else it is damaged.
        """
        id = base.id if isinstance(base, Base) else base
        async with self._finding:
            found = self._known(id)
            if found is None:
                snapshot = await self._depot.find(id)
                if snapshot is None:
                    raise _missing(id, "is not on this host")
                pool = await self._open_pool(id, snapshot)
                found = Lineage(snapshot=snapshot, pool=pool, template=id)
                self._kept.append(found)
        return found.require(base)

    async def find_fit(self, base: Base | str) -> Lineage:
        """Return the same of a snapshot that new machines on this host can be restored over.

        Raises:
            SnapshotError: As `find`; or it does not fit this host any more.
            HostError: This host has not its CPU model; code `cpu_model_unfit`.
        """
        found = await self.find(base)
        id = found.snapshot.manifest.id
        if id not in self._fit:
            await self._depot.require_fit(found.snapshot)
            self._fit.add(id)
        return found

    async def release(self, id: str, *, named: Callable[[], Collection[str]]) -> None:
        """Remove a snapshot that nobody needs any more, and the pools of its lineage. *Idempotent.*

        Args:
            named: Ids of the snapshots that templates are made, or being made, of.
        """
        gone = [
            each
            for each in self._kept
            if each.snapshot.manifest.id == id and not _held(each) and not self._promised(id)
        ]
        self._kept = [each for each in self._kept if each not in gone]
        for each in gone:
            self._fit.discard(id)
            await each.pool.close()
        await self._depot.drop(id, needed=lambda: self.needed | set(named()))

    async def close(self) -> None:
        """Close the pools; the snapshots stay. *Idempotent.*"""
        await asyncio.gather(*(each.pool.close() for each in self._kept))

    def _promised(self, id: str) -> bool:
        """Tell whether somebody may yet have a machine of this lineage."""
        return id in self.in_use() or self._wanted[id] > 0

    def _known(self, id: str) -> Lineage | None:
        """Return the youngest lineage of a snapshot."""
        mine = (each for each in reversed(self._kept) if each.snapshot.manifest.id == id)
        return next(mine, None)


def _held(lineage: Lineage) -> bool:
    return lineage.pool.census.held > 0


def _missing(id: str, why: str) -> SnapshotError:
    return SnapshotError(
        f"the base snapshot {id!r} {why}",
        code="base_missing",
        remedy="import it with the checkpoint, or make its template again on the host that had it",
    )
