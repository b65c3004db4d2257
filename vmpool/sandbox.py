"""Sandbox: a guest that somebody holds, until they kill it, its time is up or it dies.

Its machine may make way for another, or for a checkpoint: then whoever was using it is told so.

It decides what its holder may do in which state. It knows no pool and no store; whoever makes one
gives it a clone and takes the clone back when it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from vmpool.clone import RestoreTimings
from vmpool.egress import UNCONNECTED, NetworkPolicy
from vmpool.errors import ConflictError, GuestError, NotFoundError
from vmpool.lifecycle import (
    AutoResume,
    End,
    EndReason,
    Life,
    OnExpiry,
    Reaped,
    SandboxState,
    Started,
    Turn,
    advance,
)
from vmpool.model import ClockPolicy, IdentityReceipt, Rng, Unique
from vmpool.timed_execution import TimedExecution

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from vmpool.agent import Agent
    from vmpool.agent.processes import Attachment
    from vmpool.clone import Clone
    from vmpool.errors import InfrastructureError, VmpoolError
    from vmpool.model import Code, Command, TerminalSize
    from vmpool.network.events import EventLog

CAUSE_TIMEOUT = 3.0
"""Seconds to wait for the word of what a guest died of, before its loss is all that is told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Who asked for a sandbox, and with what.

    Attributes:
        owner: Id of the token that may see and use it.
        timeout: Seconds from the making until its time is up.
        metadata: The holder's own words, shown in lists, never interpreted.
        env: Environment of everything that runs in it; an execution's own goes on top.
        secrets: The same, on top of `env`; shown to nobody, and sealed where they are kept.
        confided: An execution in it was told secrets of its own, which its memory may hold.
        on_expiry: What becomes of it when its time is up or it was idle for too long.
        idle_timeout: Seconds that it may be idle; `None` for no limit.
        auto_resume: Whether a request wakes it when it is paused.
        rng: How its machines come by their randomness, and `clock` by their time.
        parent_id: The sandbox that it was forked from.
        parent_checkpoint_id: The checkpoint that it was made from.
        ticket: Of the request that it is made for, when that may be sent again.
        network: What it may reach.
    """

    template: str
    owner: str
    timeout: float
    metadata: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict, repr=False)
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    confided: bool = False
    on_expiry: OnExpiry = OnExpiry.KILL
    idle_timeout: float | None = None
    auto_resume: AutoResume = AutoResume.NEVER
    rng: Rng = field(default_factory=Unique)
    clock: ClockPolicy = ClockPolicy.NOW
    parent_id: str | None = None
    parent_checkpoint_id: str | None = None
    ticket: bytes = field(default=b"", repr=False)
    network: NetworkPolicy = UNCONNECTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What is known of a sandbox that another server made.

    Attributes:
        access_hash: SHA-256 of its access token, which nobody knows but its maker.
        paused_ns: When it was paused, `None` when it runs.
        receipt: What its last machine confirmed.
    """

    access_hash: bytes = field(repr=False)
    created_ns: int
    deadline_ns: int
    paused_ns: int | None
    receipt: IdentityReceipt
    clock_offset_ns: int


class Stay:
    """One machine's time under a sandbox, and the word to whoever was using it when it was over."""

    def __init__(self, clone: Clone) -> None:
        self.clone = clone
        self._over = asyncio.Event()
        self._farewell: Callable[[], VmpoolError] | None = None

    def end(self, farewell: Callable[[], VmpoolError] | None) -> None:
        """Note that it is over; `None` when nobody knows why."""
        if not self._over.is_set():
            self._farewell = farewell
            self._over.set()

    async def cause_of(self, err: GuestError) -> VmpoolError:
        """Return why the guest was lost, when that becomes known soon; else `err`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CAUSE_TIMEOUT):
                await self._over.wait()
        return err if self._farewell is None else self._farewell()


class Sandbox:
    """A guest under an id, an owner and a deadline; its machine may come and go.

    Args:
        clone: Its machine; `None` for one that is paused, which has a past.
        access_token: Opens it; one that nobody can tell again when it is empty.
        past: `None` for one that is new.

    Attributes:
        access_token: Opens this sandbox alone, for its whole life; empty when another server made
            it with a token that only its maker knows: then only its hash is known.
        acquire_ns: How long its maker waited for the clone.
        created_ns: Unix time; `deadline_ns` likewise, but while it is paused its time stands still
            at `paused_ns`.
        paused_ns: Since when it is paused; `None` while it has a machine.
        denials: What its guest was denied on the network; `None` when it never had one.
    """

    def __init__(
        self,
        *,
        id: str,
        clone: Clone | None,
        claim: Claim,
        acquire_ns: int,
        access_token: str = "",
        past: Past | None = None,
    ) -> None:
        self.id = id
        self.claim = claim
        self.acquire_ns = acquire_ns
        if past is None:
            self.access_token = access_token or secrets.token_urlsafe(32)
            self.access_hash = _hash(self.access_token)
            self.created_ns = time.time_ns()
            self.deadline_ns = self.created_ns + int(claim.timeout * 1e9)
        else:
            self.access_hash = past.access_hash
            self.access_token = access_token if self.admits(access_token) else ""
            self.created_ns, self.deadline_ns = past.created_ns, past.deadline_ns
        self.paused_ns = None if past is None or clone is not None else past.paused_ns
        self._past = past
        self._life = Life(SandboxState.PAUSED) if clone is None else advance(Life(), Started())
        self._death: InfrastructureError | None = None
        self._stay = None if clone is None else Stay(clone)
        self._clone = clone
        self._visitors = 0
        connection = None if clone is None else clone.connection
        self.denials: EventLog | None = None if connection is None else connection.events
        self._quiet_since = time.monotonic()
        self._env = {"VMPOOL_SANDBOX_ID": id, "VMPOOL_TEMPLATE": claim.template}
        self._env |= claim.env | claim.secrets

    @property
    def state(self) -> SandboxState:
        """Where it is in its life."""
        return self._life.state

    @property
    def over(self) -> bool:
        """Whether it takes no more requests."""
        return self._life.over

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
        """Id of the tenant whose it is."""
        return self.claim.owner

    @property
    def metadata(self) -> dict[str, str]:
        """What its maker wrote on it."""
        return self.claim.metadata

    @property
    def clone(self) -> Clone:
        """The machine underneath; its holder is the host.

        Raises:
            ConflictError: `sandbox_paused`; it has none.
        """
        if self._stay is None:
            raise paused(self.id)
        return self._stay.clone

    @property
    def has_machine(self) -> bool:
        """Whether there is a machine underneath, which counts in a pool."""
        return self._stay is not None

    @property
    def receipt(self) -> IdentityReceipt:
        """The guest's word that its identity took, the last time that it was asked."""
        if self._clone is not None:
            return self._clone.receipt
        assert self._past is not None
        return self._past.receipt

    @property
    def clock_offset_ns(self) -> int:
        """The guest's clock minus the host's."""
        if self._clone is not None:
            return self._clone.clock_offset_ns
        assert self._past is not None
        return self._past.clock_offset_ns

    @property
    def restore_timings(self) -> RestoreTimings:
        """How long each phase of its last restore took; nothing when another server did that."""
        return self._clone.timings if self._clone is not None else UNTIMED

    @property
    def environment(self) -> dict[str, str]:
        """What all that runs in it finds in its environment, under an execution's own."""
        return self._env

    @property
    def agent(self) -> Agent:
        """The agent in the guest; `attended` lends it with the cause of a loss.

        Raises:
            NotFoundError: `sandbox_ended` when the sandbox is no more.
            ConflictError: `sandbox_paused`.
        """
        return self._present().clone.agent

    @contextlib.asynccontextmanager
    async def execute(self, what: Command | Code) -> AsyncIterator[TimedExecution]:
        """Run something in the guest, under the sandbox's environment.

        Leaving the block kills what still runs.

        Raises:
            NotFoundError: `sandbox_ended` when the sandbox is no more, or ends meanwhile.
            ConflictError: `sandbox_paused`, `sandbox_rolled_back`; as `attended`.
            InvalidRequestError: The guest refused the start.
            GuestError: `guest_unresponsive`: it did not end the execution when its time was up.
            InfrastructureError: The guest died, and of what.
        """
        own = replace(what, env=self._env | what.env)
        with self.used():
            async with self._staying() as stay, stay.clone.execute(own) as execution:
                yield TimedExecution(execution, what.timeout)

    @contextlib.asynccontextmanager
    async def begin(
        self, what: Command, *, tag: str | None = None, terminal: TerminalSize | None = None
    ) -> AsyncIterator[Attachment]:
        """Start a process that is kept, under the sandbox's environment, and follow it.

        Leaving the block lets it go on.

        Args:
            what: Its `timeout` holds whether or not anybody follows.
            tag: The caller's word for it.
            terminal: Size of a terminal that it is to run at.

        Raises:
            NotFoundError: `sandbox_ended` when the sandbox is no more, or ends meanwhile.
            ConflictError: `sandbox_paused`, `sandbox_rolled_back`; as `attended`.
            InvalidRequestError: The guest refused the start.
            TaskError: `guest_no_resources`.
            InfrastructureError: The guest died, and of what.
        """
        own = replace(what, env=self._env | what.env)
        async with (
            self.attended() as agent,
            agent.processes.begin(own, tag=tag, terminal=terminal) as attachment,
        ):
            yield attachment

    @contextlib.asynccontextmanager
    async def attended(self) -> AsyncIterator[Agent]:
        """Lend the agent for a block, and tell a guest that is lost meanwhile by its cause.

        While it is lent, the sandbox is not idle.

        Raises:
            VmpoolError: As `lent`.
        """
        async with self.lent() as agent:
            with self.used():
                yield agent

    @contextlib.asynccontextmanager
    async def lent(self) -> AsyncIterator[Agent]:
        """Lend the agent as `attended` does, to one who says himself when the sandbox is used.

        Raises:
            NotFoundError: `sandbox_ended` when the sandbox is no more, or ends meanwhile.
            ConflictError: `sandbox_paused` when it is paused, or is meanwhile;
                `sandbox_rolled_back` when its machine made way for another.
            InfrastructureError: The guest died, and of what.
        """
        async with self._staying() as stay:
            await stay.clone.awake()
            yield stay.clone.agent

    @contextlib.asynccontextmanager
    async def _staying(self) -> AsyncIterator[Stay]:
        """Lend the machine, which may not be awake yet; its loss is told by its cause."""
        stay = self._present()
        try:
            yield stay
        except GuestError as err:
            raise await stay.cause_of(err) from err

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Count as used for a block, and as idle from its end on."""
        self._visitors += 1
        try:
            yield
        finally:
            self._visitors -= 1
            self.touch()

    def touch(self) -> None:
        """Count the time that it is idle from now on."""
        self._quiet_since = time.monotonic()

    @property
    def quiet_seconds(self) -> float:
        """How long nobody has asked anything of it; what runs in the guest, it does not know."""
        return 0.0 if self._visitors else time.monotonic() - self._quiet_since

    def ended(self) -> NotFoundError:
        """Return, as an error to raise, that it is no more."""
        return ended(self.id, self.end_reason)

    def loss(self) -> VmpoolError:
        """Return, as an error to raise, of what it died, or that it is no more."""
        return self._death or self.ended()

    def admits(self, token: str) -> bool:
        """Whether `token` is this sandbox's own."""
        return secrets.compare_digest(_hash(token), self.access_hash)

    def extend(self, timeout: float) -> None:
        """Set the deadline to `timeout` seconds from now; it may come nearer as well.

        A paused one has that much time when it is resumed.
        """
        since_ns = time.time_ns() if self.paused_ns is None else self.paused_ns
        self.deadline_ns = since_ns + int(timeout * 1e9)

    @property
    def left_seconds(self) -> float:
        """How much of its time is left; of a paused one it does not pass."""
        since_ns = time.time_ns() if self.paused_ns is None else self.paused_ns
        return (self.deadline_ns - since_ns) / 1e9

    @property
    def resumed_seconds(self) -> float:
        """How much time it has if it goes on now: what is left, or all of it anew if none is."""
        left = self.left_seconds
        return left if left > 0 else self.claim.timeout

    @property
    def expires_ns(self) -> int:
        """When its time is up, in Unix time; of a paused one, when it is if that goes on now."""
        if self.paused_ns is None:
            return self.deadline_ns
        return time.time_ns() + int(self.resumed_seconds * 1e9)

    def turn(self, turn: Turn) -> None:
        """Take a turn, unless it has ended.

        Raises:
            ConflictError: `illegal_transition`.
        """
        if not self._life.over:
            self._life = advance(self._life, turn)

    def halted(self, paused_ns: int) -> None:
        """Note that it goes on from a checkpoint, and needs its machine no more."""
        assert self._stay is not None
        self.turn(Turn.HALTED)
        self.paused_ns = paused_ns
        self._stay.end(partial(paused, self.id))
        self._stay = None

    def moved(self, clone: Clone) -> None:
        """Note that it has another machine, also when it has ended."""
        self.turn(Turn.RUNS)
        if self._stay is not None:
            self._stay.end(partial(rolled_back, self.id))
        self._clone, self._stay = clone, Stay(clone)
        if self.paused_ns is not None:
            self.deadline_ns += time.time_ns() - self.paused_ns
            self.paused_ns = None
        self.touch()

    def end(self, reason: EndReason, death: InfrastructureError | None = None) -> None:
        """Let it take no more requests. *Idempotent*; the first reason stays.

        Args:
            death: Of what the guest died, when it did.
        """
        if not self._life.over:
            self._death = death
        self._life = advance(self._life, End(reason))
        if self._stay is not None:
            unknown = self.end_reason is EndReason.CRASHED and self._death is None
            self._stay.end(None if unknown else self.loss)
        if self.denials is not None:
            self.denials.close()

    def reaped(self) -> None:
        """Note that its clone is gone, after `end`."""
        self._life = advance(self._life, Reaped())

    def _present(self) -> Stay:
        if self._life.over:
            raise self.ended()
        if self._stay is None:
            raise paused(self.id)
        return self._stay


UNTIMED = RestoreTimings(
    spawn_ns=0, load_ns=0, resume_ns=0, hello_ns=0, identify_ns=0, warm_ns=0, rest_ns=0
)


def _hash(token: str) -> bytes:
    """Return what is kept of a token: one of 256 random bits needs no salt."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def paused(id: str) -> ConflictError:
    """Return, as an error to raise, that a sandbox has no machine."""
    return ConflictError(
        f"sandbox {id!r} is paused", code="sandbox_paused", remedy="resume it first"
    )


def rolled_back(id: str) -> ConflictError:
    """Return, as an error to raise, that a sandbox's machine made way for an earlier state."""
    return ConflictError(
        f"sandbox {id!r} was rolled back while this ran",
        code="sandbox_rolled_back",
        remedy="ask again; what was done is undone",
    )


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
