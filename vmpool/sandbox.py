"""Sandbox: a clone that somebody holds, until they kill it, its time is up or it dies.

It decides what its holder may do in which state. It knows no pool and no store; whoever makes one
gives it a clone and takes the clone back when it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from vmpool.errors import GuestError, NotFoundError
from vmpool.lifecycle import End, EndReason, Life, Reaped, Started, advance
from vmpool.model import Output, Result

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.agent import Agent, Execution
    from vmpool.clone import Clone, RestoreTimings
    from vmpool.errors import InfrastructureError, VmpoolError
    from vmpool.lifecycle import SandboxState
    from vmpool.model import Code, Command, ExecutionEvent, IdentityReceipt

GRACE = 15.0
"""Seconds beyond its time that the end of an execution may take to be told: the guest kills what is
over its time, and is not believed when it does not."""

REST_BYTES = 4 << 20
"""What may still come of an execution that is over its time by `GRACE`, for a reader who was slow:
more than pipes, the channel's window and a last result hold once the process group is dead. What is
over it is no rest: the guest goes on."""

EVENT_BYTES = 256
"""What one event counts at least: thousands of empty ones are not free."""

CAUSE_TIMEOUT = 3.0
"""Seconds to wait for the word of what a guest died of, before its loss is all that is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who asked for a sandbox, and with what.

    Attributes:
        owner: Id of the token that may see and use it.
        timeout: Seconds from the making until it is killed.
        metadata: The holder's own words, shown in lists, never interpreted.
        env: Environment of everything that runs in it; an execution's own goes on top.
    """

    template: str
    owner: str
    timeout: float
    metadata: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict, repr=False)


class TimedExecution:
    """An execution whose guest is given up when it goes on beyond its time.

    It may neither keep its reader waiting nor go on talking. Who reads slowly holds the guest back
    and may learn of an end long after it came: what was left in buffers is still told.

    Args:
        timeout: Seconds that the guest was given; `None` for no end.
    """

    def __init__(self, execution: Execution, timeout: float | None) -> None:
        self._execution = execution
        self._events = aiter(execution)
        self._patience = None if timeout is None else timeout + GRACE
        self._end = asyncio.get_running_loop().time() + (self._patience or 0.0)
        self._rest_bytes = REST_BYTES
        self.write_stdin = execution.write_stdin
        self.close_stdin = execution.close_stdin
        self.kill = execution.kill

    @property
    def pid(self) -> int:
        """The process in the guest."""
        return self._execution.pid

    def __aiter__(self) -> AsyncIterator[ExecutionEvent]:
        return self

    async def __anext__(self) -> ExecutionEvent:
        """Return the next event.

        Raises:
            GuestError: As `Execution`; `guest_unresponsive` when the end does not come.
        """
        if self._patience is None:
            return await anext(self._events)
        loop = asyncio.get_running_loop()
        began = loop.time()
        limit = asyncio.timeout(self._patience)
        try:
            async with limit:
                event = await anext(self._events)
        except TimeoutError as err:
            if not limit.expired():
                raise
            raise _over_its_time() from err
        finally:
            self._patience -= loop.time() - began
        if loop.time() > self._end:
            self._rest_bytes -= _size(event)
            if self._rest_bytes < 0:
                raise _over_its_time()
        return event


def _over_its_time() -> GuestError:
    return GuestError(
        "the guest did not end the execution when its time was up", code="guest_unresponsive"
    )


def _size(event: ExecutionEvent) -> int:
    """Return what an event counts."""
    match event:
        case Output(data=data):
            size = len(data)
        case Result(mime=mime):
            size = sum(map(len, mime.values()))
        case _:
            size = 0
    return max(size, EVENT_BYTES)


class Sandbox:
    """A running guest under an id, an owner and a deadline.

    Attributes:
        access_token: Opens this sandbox alone; the same for its whole life.
        acquire_ns: How long its maker waited for the clone.
        created_ns: Unix time; `deadline_ns` likewise.
    """

    def __init__(self, *, id: str, clone: Clone, claim: Claim, acquire_ns: int) -> None:
        self.id = id
        self.claim = claim
        self.access_token = secrets.token_urlsafe(32)
        self.acquire_ns = acquire_ns
        self.created_ns = time.time_ns()
        self.deadline_ns = self.created_ns + int(claim.timeout * 1e9)
        self._life = advance(Life(), Started())
        self._over = asyncio.Event()
        self._death: InfrastructureError | None = None
        self._clone = clone
        self._env = {"VMPOOL_SANDBOX_ID": id, "VMPOOL_TEMPLATE": claim.template} | claim.env

    @property
    def state(self) -> SandboxState:
        """Where it is in its life."""
        return self._life.state

    @property
    def end_reason(self) -> EndReason | None:
        """Why it ended, `None` while it has not."""
        return self._life.reason

    @property
    def template(self) -> str:
        """Name of the template that it was restored from."""
        return self.claim.template

    @property
    def owner(self) -> str:
        """Id of the token that made it."""
        return self.claim.owner

    @property
    def metadata(self) -> dict[str, str]:
        """What its maker wrote on it."""
        return self.claim.metadata

    @property
    def clone(self) -> Clone:
        """The machine underneath; its holder is the host."""
        return self._clone

    @property
    def receipt(self) -> IdentityReceipt:
        """The guest's word that its identity took."""
        return self._clone.receipt

    @property
    def restore_timings(self) -> RestoreTimings:
        """How long each phase of its restore took."""
        return self._clone.timings

    @property
    def agent(self) -> Agent:
        """The agent in the guest; `attended` lends it with the cause of a loss.

        Raises:
            NotFoundError: `sandbox_ended` when the sandbox is no more.
        """
        if self._life.over:
            raise self.ended()
        return self._clone.agent

    @contextlib.asynccontextmanager
    async def execute(self, what: Command | Code) -> AsyncIterator[TimedExecution]:
        """Run something in the guest, under the sandbox's environment.

        Leaving the block kills what still runs.

        Raises:
            NotFoundError: `sandbox_ended` when the sandbox is no more, or ends meanwhile.
            InvalidRequestError: The guest refused the start.
            GuestError: `guest_unresponsive`: it did not end the execution when its time was up.
            InfrastructureError: The guest died, and of what.
        """
        own = replace(what, env=self._env | what.env)
        async with self.attended() as agent, agent.execute(own) as execution:
            yield TimedExecution(execution, what.timeout)

    @contextlib.asynccontextmanager
    async def attended(self) -> AsyncIterator[Agent]:
        """Lend the agent for a block, and tell a guest that is lost meanwhile by its cause.

        Raises:
            NotFoundError: `sandbox_ended` when the sandbox is no more, or ends meanwhile.
            InfrastructureError: The guest died, and of what.
        """
        try:
            yield self.agent
        except GuestError as err:
            raise await self._cause_of(err) from err

    async def _cause_of(self, err: GuestError) -> VmpoolError:
        """Return why the guest was lost, when that becomes known soon; else `err`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CAUSE_TIMEOUT):
                await self._over.wait()
        if not self._life.over:
            return err
        if self.end_reason is EndReason.CRASHED:
            return self._death or err
        return self.ended()

    def ended(self) -> NotFoundError:
        """Return, as an error to raise, that it is no more."""
        return ended(self.id, self.end_reason)

    def admits(self, token: str) -> bool:
        """Whether `token` is this sandbox's own."""
        return secrets.compare_digest(token.encode(), self.access_token.encode())

    def extend(self, timeout: float) -> None:
        """Set the deadline to `timeout` seconds from now; it may come nearer as well."""
        self.deadline_ns = time.time_ns() + int(timeout * 1e9)

    def end(self, reason: EndReason, death: InfrastructureError | None = None) -> None:
        """Let it take no more requests. *Idempotent*; the first reason stays.

        Args:
            death: Of what the guest died, when it did.
        """
        if not self._life.over:
            self._death = death
        self._life = advance(self._life, End(reason))
        self._over.set()

    def reaped(self) -> None:
        """Note that its clone is gone, after `end`."""
        self._life = advance(self._life, Reaped())


def ended(id: str, reason: EndReason | None) -> NotFoundError:
    """Return, as an error to raise, that a sandbox is no more.

    Args:
        reason: `None` when nobody has noted it.
    """
    return NotFoundError(
        f"sandbox {id!r} has ended: {reason.value if reason is not None else 'unknown'}",
        code="sandbox_ended",
        remedy="create another one",
    )
