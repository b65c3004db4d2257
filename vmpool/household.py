"""Household: the sandboxes of a host, who watches over each, and how each ends.

It decides when a sandbox ends and sees to it that nothing of it is left; one operation at a time
changes a sandbox's machine, and whoever ends it waits for none. What an operation is, and who may
ask for one, others decide.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, TypeVar

from vmpool import faults
from vmpool.cancellation import uninterrupted
from vmpool.chores import Chores
from vmpool.errors import CapacityError, NotFoundError, VmpoolError
from vmpool.holding import ONE_SANDBOX, Holding, recalled
from vmpool.idleness import idle
from vmpool.lifecycle import EndReason, OnStop, SandboxState
from vmpool.model import new_id
from vmpool.quota import Usage
from vmpool.sandbox import Sandbox, ended

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from vmpool.clone import Clone
    from vmpool.errors import InfrastructureError
    from vmpool.metrics import Metrics
    from vmpool.pool import Pool
    from vmpool.sandbox import Claim
    from vmpool.store import SandboxRow, Store
    from vmpool.vault import Vault

log = logging.getLogger(__name__)

T = TypeVar("T")

RETRY_SECONDS = 60.0
"""Until a sandbox that is overdue is tried to be paused again."""


class Household:
    """All sandboxes of a host.

    Args:
        kill_timeout: Seconds that the end of a machine may take.
        paused_seconds: How long a sandbox may stay paused.
        on_expiry: Told of a sandbox that runs and whose time is up, or that was idle for its limit.
        on_gone: Told of the snapshot that a sandbox which ended had descended from.
    """

    def __init__(
        self,
        *,
        store: Store,
        metrics: Metrics,
        vault: Vault,
        kill_timeout: float,
        paused_seconds: float,
        on_expiry: Callable[[Holding, EndReason], None],
        on_gone: Callable[[str], Awaitable[None]],
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._vault = vault
        self._kill_timeout = kill_timeout
        self._paused_seconds = paused_seconds
        self._on_expiry = on_expiry
        self._on_gone = on_gone
        self._holdings: dict[str, Holding] = {}
        self._chores = Chores("sandboxes")
        self._closed = False

    # Who is there.

    @property
    def base_ids(self) -> set[str]:
        """The snapshots that sandboxes descend from."""
        return {holding.base_id for holding in self._holdings.values()}

    @property
    def tally(self) -> dict[str, int]:
        """How many sandboxes are in each state."""
        states = [holding.sandbox.state for holding in self._holdings.values()]
        return {state.value: states.count(state) for state in SandboxState}

    def of(self, owner: str) -> list[Sandbox]:
        """Return the sandboxes of `owner`, newest first."""
        mine = [each.sandbox for each in self._holdings.values() if each.sandbox.owner == owner]
        return sorted(mine, key=lambda sandbox: sandbox.created_ns, reverse=True)

    def usage(self, owner: str) -> Usage:
        """Return what the machines of `owner` count as, those that are ending too."""
        mine = (each for each in self._holdings.values() if each.sandbox.owner == owner)
        return Usage.total(each.usage for each in mine)

    def living(self, id: str) -> Holding | None:
        """Return what has not begun to end."""
        holding = self._holdings.get(id)
        return None if holding is None or holding.ending is not None else holding

    def opened_by(self, fits: Callable[[str], bool]) -> Sandbox | None:
        """Return the sandbox whose access token is the right one, whoever's it is."""
        for holding in self._holdings.values():
            if holding.ending is None and fits(holding.sandbox.access_token):
                return holding.sandbox
        return None

    async def find(self, id: str, *, owner: str) -> Holding:
        """Return one sandbox of `owner`.

        Raises:
            NotFoundError: `sandbox_not_found` when there never was one or it is somebody else's,
                `sandbox_ended` when it was theirs and is no more.
        """
        holding = self.living(id)
        if holding is not None and holding.sandbox.owner == owner:
            return holding
        raise await self._absent(id, owner)

    def make(self, clone: Clone, claim: Claim, *, acquire_ns: int, id: str = "") -> Sandbox:
        """Return a new sandbox, which nobody watches over yet.

        Args:
            id: Its own; a new one when empty.
        """
        id = id or new_id()
        return Sandbox(
            id=id,
            clone=clone,
            claim=claim,
            acquire_ns=acquire_ns,
            access_token=self._access_token(id),
        )

    def _access_token(self, id: str) -> str:
        """Return what opens a sandbox for its whole life, also after a restart of the server."""
        return self._store.token(of=f"sandbox {id}")

    def admit(
        self,
        sandbox: Sandbox,
        *,
        base_id: str,
        pool: Pool[Clone] | None,
        share: Usage = ONE_SANDBOX,
    ) -> Holding:
        """Watch over a sandbox from now on.

        Args:
            pool: Where its machine counts as held; `None` for one that is paused.
            share: What its machine counts as in its owner's quota.
        """
        holding = Holding(sandbox=sandbox, base_id=base_id, pool=pool, share=share)
        self._holdings[sandbox.id] = holding
        self.attend(holding)
        return holding

    def recall(
        self,
        row: SandboxRow,
        *,
        clone: Clone | None,
        pool: Pool[Clone] | None,
        share: Usage = ONE_SANDBOX,
    ) -> Holding:
        """Watch over a sandbox of a server before this one.

        Args:
            clone: Its machine, which counts in `pool` as held; `None` for one that is paused.
            share: As of `admit`.
        """
        sandbox = recalled(row, clone, self._access_token(row.id))
        holding = self.admit(sandbox, base_id=row.base_id, pool=pool, share=share)
        holding.journaled = True
        return holding

    async def record(self, holding: Holding) -> None:
        """Write a new sandbox into the journal, before anyone is told of it; or end it.

        Raises:
            StoreError, DiskFullError: The journal could not take it.
        """
        try:
            holding.journaled = True  # when cancelled, the row may be there or come yet
            faults.reach("create.held")
            await self._store.record_sandbox(holding.row)
            faults.reach("create.recorded")
        except VmpoolError:
            holding.journaled = False
            await self.end(holding, EndReason.KILLED)
            raise
        except BaseException:
            await self.end(holding, EndReason.KILLED)
            raise

    def attend(self, holding: Holding) -> None:
        """Watch the machine and the clock of a sandbox, whatever was watched before.

        Its guest shares with those of all others from then on what time there is to listen.
        """
        self.disregard(holding)
        if holding.ending is not None:
            return
        if holding.sandbox.has_machine:
            holding.watch = self._chores.begin(self._watch(holding))
            if (limit := holding.sandbox.claim.idle_timeout) is not None:
                holding.idle = self._chores.begin(self._await_idle(holding, limit))
        self.set_alarm(holding, self._left(holding))

    def disregard(self, holding: Holding) -> None:
        """Watch neither: its machine ends on purpose, and its time stands still."""
        for task in (holding.watch, holding.idle):
            if task is not None:
                task.cancel()
        if holding.alarm is not None:
            holding.alarm.cancel()

    def set_alarm(self, holding: Holding, seconds: float) -> None:
        """Have its time be up after so many seconds from now."""
        if holding.alarm is not None:
            holding.alarm.cancel()
        loop = asyncio.get_running_loop()
        holding.alarm = loop.call_later(max(seconds, 0), self._expire, holding)

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start a task that `close` waits for."""
        return self._chores.begin(work)

    # One operation at a time.

    async def finish(self, holding: Holding, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Do what changes a sandbox's machine, when nothing else does.

        Once begun, it goes on when the caller is cancelled.

        Raises:
            VmpoolError: What the work raises.
            NotFoundError: `sandbox_ended`; the sandbox ended before or meanwhile.
            InfrastructureError: The guest died meanwhile, and of what.
            CapacityError: `pool_closed`; the host is closing.
        """
        with holding.sandbox.used():
            return await self._outcome(holding, await self._operate(holding, work))

    async def attempt(
        self,
        holding: Holding,
        work: Callable[[], Coroutine[Any, Any, T]],
        *,
        undo: Callable[[T], Awaitable[None]],
    ) -> T:
        """Do the same, and nothing of it when the caller is cancelled.

        Args:
            undo: Takes back what was done just when its caller was cancelled.

        Raises:
            VmpoolError: As `finish`.
        """
        with holding.sandbox.used():
            task = await self._operate(holding, work)
            try:
                return await self._outcome(holding, task)
            except asyncio.CancelledError:
                await uninterrupted(self._take_back(task, undo))
                raise

    async def _take_back(self, task: asyncio.Task[T], undo: Callable[[T], Awaitable[None]]) -> None:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and task.exception() is None:
            await undo(task.result())

    async def _operate(
        self, holding: Holding, work: Callable[[], Coroutine[Any, Any, T]]
    ) -> asyncio.Task[T]:
        await holding.lock.acquire()
        if self._closed or holding.ending is not None:
            holding.lock.release()
            raise self.closing() if self._closed else holding.sandbox.loss()
        task = asyncio.get_running_loop().create_task(work(), name="operation on a sandbox")
        holding.operation = task

        def over(_: asyncio.Task[T]) -> None:
            holding.operation = None
            holding.lock.release()
            if not task.cancelled() and (error := task.exception()) is not None:
                log.info("sandbox=%s an operation failed: %s", holding.sandbox.id, error)

        task.add_done_callback(over)
        return task

    async def _outcome(self, holding: Holding, task: asyncio.Task[T]) -> T:
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            caller = asyncio.current_task()
            if not task.cancelled() or (caller is not None and caller.cancelling()):
                raise
            raise (holding.sandbox.loss() if holding.sandbox.over else self.closing()) from None

    def closing(self) -> CapacityError:
        """Return, as an error to raise, that nothing is begun any more."""
        return CapacityError("the host is closing", code="pool_closed")

    # Ends.

    async def end(self, holding: Holding, reason: EndReason) -> None:
        """End a sandbox and wait for it; the ending goes on when the caller is cancelled."""
        await asyncio.shield(self.begin_end(holding, reason))

    def begin_end(
        self, holding: Holding, reason: EndReason, death: InfrastructureError | None = None
    ) -> asyncio.Task[None]:
        """Start ending a sandbox, once; return the task that reaps it. *Idempotent.*"""
        if holding.ending is None:
            holding.sandbox.end(reason, death)
            self.disregard(holding)
            if holding.operation is not None:
                holding.operation.cancel()
            faults.reach("kill.begun")
            holding.ending = self._chores.begin(self._reap(holding))
        return holding.ending

    def retract(self, ticket: bytes) -> None:
        """Start ending the sandboxes that were made with a ticket."""
        for holding in list(self._holdings.values()):
            if holding.sandbox.claim.ticket == ticket:
                self.begin_end(holding, EndReason.KILLED)

    async def let_go(self, holding: Holding) -> None:
        """Kill the machine of a sandbox and give its place back. *Idempotent.*"""
        pool, holding.pool = holding.pool, None
        if pool is None:
            return
        clone = holding.sandbox.clone
        await self.kill(holding, clone)
        pool.release(clone)

    async def kill(self, holding: Holding, clone: Clone) -> None:
        """Kill a machine of a sandbox, and say so when it does not end."""
        try:
            await clone.kill()
        except VmpoolError as err:  # the next start finds its directory, and it, again
            log.error("sandbox=%s clone=%s is not gone: %s", holding.sandbox.id, clone.id, err)

    async def close(self, on_stop: OnStop) -> None:
        """End or leave every sandbox that runs, and leave the paused ones. *Idempotent.*

        What is left, the next server knows. Goes on to its end when cancelled, and raises then;
        takes no longer than two kill timeouts.
        """
        self._closed = True
        for holding in list(self._holdings.values()):
            if holding.sandbox.has_machine and on_stop is OnStop.KILL:
                self.begin_end(holding, EndReason.SERVER_STOPPED)
            else:
                self._chores.begin(self._leave(holding, on_stop))
        await uninterrupted(self._chores.done(within=2 * self._kill_timeout))

    async def _leave(self, holding: Holding, on_stop: OnStop) -> None:
        """Forget a sandbox, for the next server to know."""
        self.disregard(holding)
        if holding.operation is not None:
            holding.operation.cancel()
            await asyncio.wait({holding.operation})
        if holding.ending is not None:
            return
        if not holding.sandbox.has_machine:
            self.disregard(holding)
        elif on_stop is OnStop.KEEP and holding.journaled:
            self.disregard(holding)
            await holding.sandbox.clone.release()
        else:
            self.begin_end(holding, EndReason.SERVER_STOPPED)
            return
        self._holdings.pop(holding.sandbox.id, None)

    async def _watch(self, holding: Holding) -> None:
        clone = holding.sandbox.clone
        await clone.wait_dead()
        death = await clone.obituary()
        log.warning("sandbox=%s clone=%s died: %s", holding.sandbox.id, clone.id, death)
        self._metrics.guest_failed(death.error_code)
        self.begin_end(holding, EndReason.CRASHED, death)

    async def _await_idle(self, holding: Holding, limit: float) -> None:
        while True:
            await idle(holding.sandbox, limit)
            holding.sandbox.touch()
            self._on_expiry(holding, EndReason.IDLE)

    def _expire(self, holding: Holding) -> None:
        if holding.sandbox.has_machine:
            self._on_expiry(holding, EndReason.EXPIRED)
        else:
            self.begin_end(holding, EndReason.EXPIRED)

    def _left(self, holding: Holding) -> float:
        """Return how many seconds are left, of its time or of the time that it may be paused."""
        paused_ns = holding.sandbox.paused_ns
        if paused_ns is None:
            overdue = holding.overdue_since is not None
            return RETRY_SECONDS if overdue else holding.sandbox.left_seconds
        return self._paused_seconds - (time.time_ns() - paused_ns) / 1e9

    async def _reap(self, holding: Holding) -> None:
        """Kill the machine and say so everywhere, whatever of that fails."""
        sandbox = holding.sandbox
        if holding.pool is not None:
            await self.kill(holding, sandbox.clone)  # at once; an operation has nothing to wait for
        if holding.operation is not None:
            await asyncio.wait({holding.operation})
        await self.let_go(holding)  # what the operation may have left
        faults.reach("kill.killed")
        sandbox.reaped()
        assert sandbox.end_reason is not None
        self._metrics.sandbox_ended(sandbox.end_reason)
        log.info("sandbox=%s ended: %s", sandbox.id, sandbox.end_reason.value)
        await self._drop_pause(sandbox)  # before the row: on a full disk it makes room for that
        try:
            if holding.journaled:
                await self._store.end_sandbox(sandbox.id, sandbox.end_reason)
                faults.reach("kill.recorded")
        except VmpoolError as err:  # the next start settles the row
            log.error("sandbox=%s ended, which the journal does not know: %s", sandbox.id, err)
        finally:
            del self._holdings[sandbox.id]
        await self._on_gone(holding.base_id)

    async def _drop_pause(self, sandbox: Sandbox) -> None:
        checkpoint = self._vault.pause_of(sandbox.id)
        if checkpoint is not None:
            await self._vault.discard(checkpoint.id)

    async def _absent(self, id: str, owner: str) -> NotFoundError:
        """Return why there is no such sandbox for `owner`; a stranger's was never there."""
        holding = self._holdings.get(id)
        if holding is not None and holding.sandbox.owner == owner:
            return holding.sandbox.ended()
        unknown = NotFoundError(f"there is no sandbox {id!r}", code="sandbox_not_found")
        try:
            row = await self._store.sandbox(id)
        except NotFoundError:
            return unknown
        if row.owner != owner:
            return unknown
        return ended(id, row.end_reason)
