"""Nursery: clones that go on where a sandbox was, each in a place of its own in a pool.

It may keep a hypervisor waiting for the next state of a template: a state is there in milliseconds,
its hypervisor in tens of them. It decides nothing about sandboxes: whose state it is, for which
templates one waits and what becomes of the clone, the caller says.
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import TYPE_CHECKING

from vmpool import clone
from vmpool.chores import Chores
from vmpool.errors import VmpoolError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmpool.clone import Clone, RestoreDeadlines, Waiting
    from vmpool.engine import Engine
    from vmpool.model import Identity, Waking
    from vmpool.snapshot import Snapshot

log = logging.getLogger(__name__)

AT_ONCE = max(2, os.cpu_count() or 1)
"""Hypervisors that start at one time, and clones that wake: more would make each other late."""


class Nursery:
    """What makes clones of states.

    Args:
        run: Directory that clones' directories are made in.
        spares: Hypervisors to keep waiting for each template that `prepare` names.
    """

    def __init__(
        self, engine: Engine, *, run: Path, deadlines: RestoreDeadlines, spares: int
    ) -> None:
        self._engine = engine
        self._run = run
        self._deadlines = deadlines
        self._spares = spares
        self._starting = asyncio.Semaphore(AT_ONCE)
        self._waking = asyncio.Semaphore(AT_ONCE)
        self._keepers: dict[asyncio.Task[None], Snapshot] = {}
        self._waiting: dict[asyncio.Task[None], Waiting] = {}
        self._chores = Chores("nursery")

    def prepare(self, template: Snapshot) -> None:
        """Keep hypervisors waiting for the next states of a template. *Idempotent.*"""
        kept = [each for each in self._keepers.values() if each.as_base == template.as_base]
        for _ in range(self._spares - len(kept)):
            keeper = self._chores.begin(self._keep(template))
            self._keepers[keeper] = template
            keeper.add_done_callback(self._keepers.pop)

    async def drop(self, base_id: str) -> None:
        """End what waits for states of a template. *Idempotent.*"""
        keepers = [
            keeper for keeper, template in self._keepers.items() if template.manifest.id == base_id
        ]
        for keeper in keepers:
            keeper.cancel()
        if keepers:
            await asyncio.wait(keepers)

    async def close(self) -> None:
        """End all that waits; to be called when nobody prepares or wakes any more. *Idempotent.*"""
        for base_id in {template.manifest.id for template in self._keepers.values()}:
            await self.drop(base_id)

    async def stand_by(self, template: Snapshot) -> Waiting:
        """Return a hypervisor that waits for a state; the caller kills it or has it `wake`.

        Raises:
            EngineError: The hypervisor failed.
            HostError, DiskFullError: There is no place for its directory.
        """
        for keeper, waiting in self._waiting.items():
            if waiting.template.as_base == template.as_base:
                del self._waiting[keeper]
                keeper.cancel()
                return waiting
        async with self._starting:
            return await clone.stand_by(self._engine, template, run=self._run)

    async def _keep(self, template: Snapshot) -> None:
        """Have a hypervisor wait until it is taken, ends by itself, or is wanted no more."""
        keeper = asyncio.current_task()
        assert keeper is not None
        try:
            waiting = await clone.stand_by(self._engine, template, run=self._run)
        except VmpoolError as err:
            log.warning("no hypervisor waits for %s: %s", template.manifest.id, err)
            return
        self._waiting[keeper] = waiting
        try:
            await waiting.wait()
            log.warning("a hypervisor that waited for %s has ended", template.manifest.id)
        finally:
            if self._waiting.pop(keeper, None) is not None:  # nobody took it
                await waiting.kill()

    async def wake(
        self,
        waiting: Waiting,
        state: Snapshot,
        *,
        key: bytes,
        identity: Callable[[str], Identity],
        policy: Waking,
    ) -> Clone:
        """Have a waiting hypervisor go on from a state; on failure nothing of it is left.

        Args:
            key: What the agent in the state obeys.
            identity: Says who a clone of a given id is to be.

        Raises:
            VmpoolError: As `clone.descend`.
        """
        try:
            await self._waking.acquire()
        except BaseException:
            await waiting.kill()
            raise
        try:
            return await clone.descend(
                waiting,
                state,
                key=key,
                identity=identity(waiting.id),
                policy=policy,
                deadlines=self._deadlines,
            )
        finally:
            self._waking.release()

    async def grow(
        self,
        template: Snapshot,
        state: Snapshot,
        *,
        key: bytes,
        identity: Callable[[str], Identity],
        policy: Waking,
    ) -> Clone:
        """Return a clone that goes on from a state of `template`'s; as `wake`.

        Raises:
            VmpoolError: As `stand_by` and `wake`.
        """
        waiting = await self.stand_by(template)
        return await self.wake(waiting, state, key=key, identity=identity, policy=policy)
