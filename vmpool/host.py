"""Host: one machine's worth of images, templates, pools and sandboxes.

The only place that sees everything: opened, wired and closed here. It decides who holds which
clone and until when; how a clone is restored, when a pool refills and what a journal row looks
like is decided below. It knows no HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vmpool import run
from vmpool.cancellation import uninterrupted
from vmpool.clone import Clone
from vmpool.errors import NotFoundError, VmpoolError
from vmpool.lifecycle import EndReason
from vmpool.model import Accelerator, Transport, new_id
from vmpool.pool import Pool
from vmpool.sandbox import Claim, Sandbox, ended
from vmpool.store import SandboxRow

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from vmpool.catalogue import Catalogue
    from vmpool.config import Settings
    from vmpool.errors import InfrastructureError
    from vmpool.image import Library
    from vmpool.metrics import Metrics
    from vmpool.run import RunOutcome, RunRequest
    from vmpool.store import Store

log = logging.getLogger(__name__)

AUDITS = 1024
"""Audit entries that may wait for the journal; what is over is told to the log alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What this host can do, and why not more.

    Attributes:
        accelerator_reason: Why it is not KVM, in words; empty when it is.
    """

    accelerator: Accelerator
    accelerator_reason: str
    transport: Transport
    qemu_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRequest:
    """What somebody asks of a new sandbox.

    Attributes:
        timeout: Seconds until it is killed.
        wait: Seconds to wait for a clone when none is ready.
    """

    template: str
    timeout: float
    wait: float
    metadata: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict, repr=False)


@dataclass(slots=True)
class _Held:
    """A sandbox with what watches it, and the pool that its clone came from.

    Attributes:
        ending: Reaps it; `None` while it lives.
        journaled: The journal has a row of it, or may have.
    """

    sandbox: Sandbox
    pool: Pool[Clone]
    watch: asyncio.Task[None] = field(init=False)
    alarm: asyncio.TimerHandle = field(init=False)
    ending: asyncio.Task[None] | None = None
    journaled: bool = False


class Host:
    """The running whole; made by `vmpool.opening.open_host`.

    Attributes:
        facts: What this machine can do.
        images: The image library.
        catalogue: The templates with their pools.
        store: The journal.
        metrics: What has been counted.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        facts: HostFacts,
        images: Library,
        catalogue: Catalogue,
        store: Store,
        metrics: Metrics,
    ) -> None:
        self.settings = settings
        self.facts = facts
        self.images = images
        self.catalogue = catalogue
        self.store = store
        self.metrics = metrics
        self._held: dict[str, _Held] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._audits = 0

    async def create(self, request: CreateRequest, *, owner: str) -> Sandbox:
        """Give `owner` a sandbox of their own. *Not idempotent.*

        On failure and on cancellation there is no sandbox.

        Raises:
            NotFoundError: `template_not_found`.
            CapacityError: No clone within `request.wait` seconds, or the queue is full.
            StoreError, DiskFullError: The journal could not take it.
        """
        claim = Claim(
            template=request.template,
            owner=owner,
            timeout=request.timeout,
            metadata=request.metadata,
            env=request.env,
        )
        held = await self._hold(claim, request.wait)
        sandbox = held.sandbox
        try:
            held.journaled = True  # when cancelled, the row may be there or come yet
            await self.store.record_sandbox(_row(sandbox))
        except VmpoolError:
            held.journaled = False
            await self._end(held, EndReason.KILLED)
            raise
        except BaseException:
            await self._end(held, EndReason.KILLED)
            raise
        self.audit(owner, "sandbox.create", sandbox.id, {"template": request.template})
        return sandbox

    async def run(self, request: RunRequest, *, owner: str) -> RunOutcome:
        """Run once in a machine that nobody had before and nobody gets after. *Not idempotent.*

        The machine is on its way out when this returns, raises or is cancelled.

        Raises:
            NotFoundError: `template_not_found`.
            CapacityError: No clone within `request.wait` seconds, or the queue is full.
            VmpoolError: As `vmpool.run.run`.
        """
        timeout = self.settings.requests.sandbox_timeout_most
        claim = Claim(template=request.template, owner=owner, timeout=timeout)
        held = await self._hold(claim, request.wait)
        outcome = "cancelled"
        try:
            answer = await run.run(held.sandbox, request)
            outcome = "ok"
        except VmpoolError as err:
            outcome = err.error_code
            raise
        finally:
            self._begin_end(held, EndReason.FINISHED)
            detail = {"template": request.template}
            self.audit(owner, "run", held.sandbox.id, detail, outcome=outcome)
        return answer

    def sandboxes(self, *, owner: str) -> list[Sandbox]:
        """Return the sandboxes that `owner` holds now, newest first."""
        mine = [held.sandbox for held in self._held.values() if held.sandbox.owner == owner]
        return sorted(mine, key=lambda sandbox: sandbox.created_ns, reverse=True)

    async def sandbox(self, id: str, *, owner: str) -> Sandbox:
        """Return one sandbox of `owner`.

        Raises:
            NotFoundError: `sandbox_not_found` when there never was one or it is somebody else's,
                `sandbox_ended` when it was theirs and is no more.
        """
        return (await self._find(id, owner)).sandbox

    async def sandbox_by_access_token(self, id: str, token: str) -> Sandbox | None:
        """Return the sandbox when `token` is its own access token, else `None`."""
        held = self._held.get(id)
        if held is None or held.ending is not None or not held.sandbox.admits(token):
            return None
        return held.sandbox

    async def set_timeout(self, id: str, *, owner: str, timeout: float) -> Sandbox:
        """Move a sandbox's deadline to `timeout` seconds from now. *Idempotent* but for the time.

        Raises:
            NotFoundError: As `sandbox`.
            StoreError, DiskFullError: The journal could not take it; the deadline has moved all the
                same.
        """
        held = await self._find(id, owner)
        held.sandbox.extend(timeout)
        held.alarm.cancel()
        held.alarm = self._set_alarm(held)
        if held.journaled:
            await self.store.set_deadline(id, held.sandbox.deadline_ns)
        return held.sandbox

    async def kill(self, id: str, *, owner: str) -> None:
        """End a sandbox; return when its machine is gone. When cancelled, it ends all the same.

        Raises:
            NotFoundError: As `sandbox`.
        """
        held = await self._find(id, owner)
        self.audit(owner, "sandbox.kill", id, {})
        await self._end(held, EndReason.KILLED)

    def audit(
        self,
        owner: str,
        action: str,
        subject: str,
        detail: dict[str, str],
        *,
        outcome: str = "ok",
    ) -> None:
        """Write who did what into the journal, behind the answer.

        Args:
            outcome: `ok`, `cancelled` or the code of the error.
        """
        if self._audits >= AUDITS:
            log.error("the audit log is behind and lost %s of %s by %s", action, subject, owner)
            return
        self._audits += 1
        self._spawn(self._write_audit(owner, action, subject, detail, outcome))

    async def close(self) -> None:
        """Kill every sandbox and wait for all that was begun. *Idempotent.*

        Only after the pools were closed: whoever gets a clone meanwhile would keep it. Goes on to
        its end when cancelled, and raises then; takes no longer than two kill timeouts.
        """
        for held in list(self._held.values()):
            self._begin_end(held, EndReason.SERVER_STOPPED)
        await uninterrupted(self._drain())

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + 2 * self.settings.deadlines.kill
        while busy := {task for task in self._tasks if not task.done()}:
            left = deadline - loop.time()
            if left <= 0:
                log.error("closed with %d tasks that do not end", len(busy))
                return
            await asyncio.wait(busy, timeout=left)

    async def _find(self, id: str, owner: str) -> _Held:
        held = self._held.get(id)
        if held is not None and held.sandbox.owner == owner and held.ending is None:
            return held
        raise await self._absent(id, owner)

    async def _hold(self, claim: Claim, wait: float) -> _Held:
        """Take a clone from its pool and make it a sandbox, in one step after the hand-over."""
        pool = self.catalogue.pool(claim.template)
        began = time.perf_counter_ns()
        loop = asyncio.get_running_loop()
        clone = await pool.acquire(deadline=loop.time() + wait)
        sandbox = Sandbox(
            id=new_id(), clone=clone, claim=claim, acquire_ns=time.perf_counter_ns() - began
        )
        held = _Held(sandbox=sandbox, pool=pool)
        held.watch = self._spawn(self._watch(held))
        held.alarm = self._set_alarm(held)
        self._held[sandbox.id] = held
        return held

    def _set_alarm(self, held: _Held) -> asyncio.TimerHandle:
        left = (held.sandbox.deadline_ns - time.time_ns()) / 1e9
        loop = asyncio.get_running_loop()
        return loop.call_later(max(left, 0), self._begin_end, held, EndReason.EXPIRED)

    async def _watch(self, held: _Held) -> None:
        clone = held.sandbox.clone
        await clone.wait_dead()
        death = await clone.obituary()
        log.warning("sandbox=%s clone=%s died: %s", held.sandbox.id, clone.id, death)
        self.metrics.guest_failed(death.error_code)
        self._begin_end(held, EndReason.CRASHED, death)

    async def _end(self, held: _Held, reason: EndReason) -> None:
        """End a sandbox and wait for it; the ending goes on when the caller is cancelled."""
        await asyncio.shield(self._begin_end(held, reason))

    def _begin_end(
        self, held: _Held, reason: EndReason, death: InfrastructureError | None = None
    ) -> asyncio.Task[None]:
        """Start ending a sandbox, once; return the task that reaps it. *Idempotent.*"""
        if held.ending is None:
            held.sandbox.end(reason, death)
            held.alarm.cancel()
            held.ending = self._spawn(self._reap(held))
        return held.ending

    async def _reap(self, held: _Held) -> None:
        """Kill the machine and say so everywhere, whatever of that fails."""
        sandbox = held.sandbox
        held.watch.cancel()
        try:
            await sandbox.clone.kill()
        except VmpoolError as err:  # the next start finds its directory, and it, again
            log.error("sandbox=%s clone=%s is not gone: %s", sandbox.id, sandbox.clone.id, err)
        sandbox.reaped()
        held.pool.release(sandbox.clone)
        assert sandbox.end_reason is not None
        self.metrics.sandbox_ended(sandbox.end_reason)
        log.info("sandbox=%s ended: %s", sandbox.id, sandbox.end_reason.value)
        try:
            if held.journaled:
                await self.store.end_sandbox(sandbox.id, sandbox.end_reason)
        except VmpoolError as err:  # the next start settles the row
            log.error("sandbox=%s ended, which the journal does not know: %s", sandbox.id, err)
        finally:
            del self._held[sandbox.id]

    async def _absent(self, id: str, owner: str) -> NotFoundError:
        """Return why there is no such sandbox for `owner`; a stranger's was never there."""
        held = self._held.get(id)
        if held is not None and held.sandbox.owner == owner:
            return held.sandbox.ended()
        unknown = NotFoundError(f"there is no sandbox {id!r}", code="sandbox_not_found")
        try:
            row = await self.store.sandbox(id)
        except NotFoundError:
            return unknown
        if row.token_id != _token_id(owner):
            return unknown
        return ended(id, row.end_reason)

    async def _write_audit(
        self, owner: str, action: str, subject: str, detail: dict[str, str], outcome: str
    ) -> None:
        try:
            await self.store.audit.record(
                action,
                subject=subject,
                token_id=_token_id(owner),
                outcome=outcome,
                detail=dict(detail),
            )
        except VmpoolError as err:
            log.error("the audit log lost %s of %s by %s: %s", action, subject, owner, err)
        finally:
            self._audits -= 1

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("background work failed: %s", error, exc_info=error)


LOCAL = "local"
"""The owner of everything on a server without tokens."""


def _token_id(owner: str) -> str | None:
    return None if owner == LOCAL else owner


def _row(sandbox: Sandbox) -> SandboxRow:
    return SandboxRow(
        id=sandbox.id,
        template=sandbox.template,
        clone_id=sandbox.clone.id,
        token_id=_token_id(sandbox.owner),
        state=sandbox.state,
        created_ns=sandbox.created_ns,
        deadline_ns=sandbox.deadline_ns,
        metadata=sandbox.metadata,
    )
