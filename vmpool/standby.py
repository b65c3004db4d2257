"""Standby: hypervisors that wait for a state, by the template that they were started for.

A state is there in milliseconds, its hypervisor in tens of them. Whoever will need some says how
many are to wait; whoever needs one takes one, whomever it waited for, or is promised one that is
being started, and gets a new one where there is neither. What is loaded into them, and when those
that were taken are to be replaced, others decide.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from typing import TYPE_CHECKING

from vmpool import clone
from vmpool.cancellation import uninterrupted
from vmpool.chores import Chores
from vmpool.errors import VmpoolError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vmpool.clone import Waiting
    from vmpool.engine import Engine
    from vmpool.snapshot import Base, Snapshot

log = logging.getLogger(__name__)

AT_ONCE = max(2, os.cpu_count() or 1)
"""Hypervisors that start at one time because somebody needs them: more would make each other late.
Those that are to wait start one after the other."""


class Standby:
    """What waits on a host; `close` after use.

    Args:
        run: Directory that clones' directories are made in.
    """

    def __init__(self, engine: Engine, *, run: Path) -> None:
        self._engine = engine
        self._run = run
        self._wanted: dict[tuple[object, Base], int] = {}
        self._keepers: dict[asyncio.Task[None], Snapshot] = {}
        self._waiting: dict[asyncio.Task[None], Waiting] = {}
        self._promised: dict[asyncio.Task[None], asyncio.Future[Waiting | None]] = {}
        self._begun: asyncio.Task[None] | None = None
        self._starting = asyncio.Semaphore(AT_ONCE)
        self._stocking = asyncio.Semaphore(1)
        self._counters: Counter[str] = Counter()
        self._chores = Chores("standby")
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many hypervisors wait."""
        return len(self._waiting)

    @property
    def counters(self) -> Mapping[str, int]:
        """How those that were needed were had: `waited`, or `started` then or just before."""
        return {how: self._counters[how] for how in ("waited", "started")}

    def keep(self, template: Snapshot, count: int, *, party: object) -> None:
        """Have so many wait for states of a template, beside those of others. *Idempotent.*

        Of those that were taken since the last time new ones start; those that nobody wants any
        more end. Both happen behind the caller's back; a start that fails is tried again when this
        is called again.

        Args:
            party: Who wants them; what it is, only those who want them know.
        """
        if count and not self._closed:
            self._wanted[party, template.as_base] = count
        else:
            self._wanted.pop((party, template.as_base), None)
        self._level(template)

    async def drop(self, base_id: str, *, party: object) -> None:
        """Want none for states of a template any more; return when those are gone. *Idempotent.*"""
        for wanted in [(who, base) for who, base in self._wanted if base.id == base_id]:
            if wanted[0] == party:
                del self._wanted[wanted]
        for template in self._of(base_id).values():
            self._level(template)
        await self.ended(base_id)

    async def ended(self, base_id: str) -> None:
        """Return when what nobody wants of a template any more is gone."""
        ending = [
            keeper
            for keeper in self._of(base_id)
            if keeper.cancelling() or keeper in self._promised
        ]
        if ending:
            await asyncio.wait(ending)

    async def close(self) -> None:
        """End all that waits. *Idempotent.* Goes on to its end when cancelled, and raises then."""
        self._closed = True
        self._wanted.clear()
        for keeper in self._keepers:
            keeper.cancel()
        if self._keepers:
            await uninterrupted(asyncio.wait(self._keepers))

    async def take(self, template: Snapshot) -> Waiting:
        """Return a hypervisor that waits for a state; the caller kills it, or has it go on.

        Raises:
            EngineError: The hypervisor failed.
            SnapshotError: The template does not fit this host or this vmpool.
            HostError, DiskFullError: There is no place for its directory.
        """
        for keeper, waiting in self._waiting.items():
            if waiting.template.as_base == template.as_base:
                del self._waiting[keeper]
                keeper.cancel()
                waiting.spawn_ns = 0
                self._counters["waited"] += 1
                return waiting
        self._counters["started"] += 1
        began_ns = time.perf_counter_ns()
        if (coming := await self._promised_one(template)) is not None:
            coming.spawn_ns = time.perf_counter_ns() - began_ns
            return coming
        async with self._starting:
            return await clone.stand_by(self._engine, template, run=self._run)

    async def _promised_one(self, template: Snapshot) -> Waiting | None:
        """Return the one that is being started to wait; `None` without such, or when it fails.

        It has a lead over one that would be started now.
        """
        keeper = self._begun
        if keeper is None or keeper in self._promised or keeper.cancelling():
            return None
        if self._keepers[keeper].as_base != template.as_base:
            return None
        promise: asyncio.Future[Waiting | None] = asyncio.get_running_loop().create_future()
        self._promised[keeper] = promise
        try:
            return await promise
        except asyncio.CancelledError:
            if not promise.cancelled() and (given := promise.result()) is not None:
                await given.kill()
            raise

    def _of(self, base_id: str) -> dict[asyncio.Task[None], Snapshot]:
        return {
            keeper: template
            for keeper, template in self._keepers.items()
            if template.manifest.id == base_id
        }

    def _level(self, template: Snapshot) -> None:
        """Begin to start what is missing, or to end what is too much."""
        base = template.as_base
        aim = sum(count for (_, of), count in self._wanted.items() if of == base)
        kept = [
            keeper
            for keeper, of in self._keepers.items()
            if of.as_base == base and not keeper.cancelling() and keeper not in self._promised
        ]
        for keeper in kept[aim:]:
            keeper.cancel()
        for _ in range(aim - len(kept)):
            keeper = self._chores.begin(self._keep(template))
            self._keepers[keeper] = template
            keeper.add_done_callback(self._keepers.pop)

    async def _keep(self, template: Snapshot) -> None:
        """Have a hypervisor wait until it is taken, ends by itself, or is wanted no more."""
        keeper = asyncio.current_task()
        assert keeper is not None
        try:
            async with self._stocking:
                waiting = await self._begin(keeper, template)
        except VmpoolError as err:
            log.warning("no hypervisor waits for %s: %s", template.manifest.id, err)
            return
        if waiting is None:
            return
        self._waiting[keeper] = waiting
        self._level(template)  # who was promised it may be gone, and nobody want it any more
        try:
            await waiting.wait()
            log.warning("a hypervisor that waited for %s has ended", template.manifest.id)
        finally:
            if self._waiting.pop(keeper, None) is not None:  # nobody took it
                await waiting.kill()

    async def _begin(self, keeper: asyncio.Task[None], template: Snapshot) -> Waiting | None:
        """Return a hypervisor that is to wait; `None` when somebody who was promised it has it.

        Raises:
            VmpoolError: As `clone.stand_by`.
        """
        self._begun = keeper
        waiting = None
        try:
            waiting = await clone.stand_by(self._engine, template, run=self._run)
        finally:
            self._begun = None
            promise = self._promised.pop(keeper, None)
            given = promise is not None and not promise.cancelled()
            if promise is not None and given:
                promise.set_result(waiting)
        return None if given else waiting
