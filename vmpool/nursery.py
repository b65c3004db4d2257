"""Nursery: clones that go on where a sandbox was, each in a place of its own in a pool.

It decides nothing about sandboxes: whose state it is and what becomes of the clone, the caller
says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vmpool import clone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmpool.clone import Clone, RestoreDeadlines, Waiting
    from vmpool.engine import Engine
    from vmpool.model import Identity, Waking
    from vmpool.snapshot import Snapshot


class Nursery:
    """What makes clones of states.

    Args:
        run: Directory that clones' directories are made in.
    """

    def __init__(self, engine: Engine, *, run: Path, deadlines: RestoreDeadlines) -> None:
        self._engine = engine
        self._run = run
        self._deadlines = deadlines

    async def stand_by(self, template: Snapshot) -> Waiting:
        """Return a hypervisor that waits for a state; the caller kills it or has it `wake`.

        Raises:
            EngineError: The hypervisor failed.
            HostError, DiskFullError: There is no place for its directory.
        """
        return await clone.stand_by(self._engine, template, run=self._run)

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
        return await clone.descend(
            waiting,
            state,
            key=key,
            identity=identity(waiting.id),
            policy=policy,
            deadlines=self._deadlines,
        )

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
