"""Clone: a machine restored from a snapshot, with its agent link and its directory."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from typing import TYPE_CHECKING

from msgspec import structs

from vmpool.cancellation import uninterrupted
from vmpool.clone.dawn import Dawn
from vmpool.clone.introduction import identify, set_clock
from vmpool.clone.plug import Plug
from vmpool.errors import EngineError, GuestError, VmpoolError
from vmpool.model import Identity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vmpool.agent import Agent, Execution
    from vmpool.clone.papers import Papers
    from vmpool.clone.timings import RestoreDeadlines, RestoreTimings
    from vmpool.engine import Machine
    from vmpool.errors import InfrastructureError
    from vmpool.model import Code, Command, IdentityReceipt, Waking
    from vmpool.network.connection import Connection

OBITUARY_TIMEOUT = 1.0
"""Seconds that a hypervisor may outlive its guest's agent and still count as the cause."""


class Clone:
    """A machine that is somebody: restored and identified.

    Made by `restore`, `descend` or `adopt`; whoever holds it calls `kill`, or `release`.
    """

    def __init__(
        self,
        *,
        machine: Machine,
        agent: Agent,
        directory: Path,
        papers: Papers,
        deadlines: RestoreDeadlines,
        dawn: Dawn | None = None,
    ) -> None:
        """Hold what is there.

        Args:
            dawn: Says when it wakes; `None` for at once.
        """
        self.id = directory.name
        self.machine = machine
        self.agent = agent
        self.directory = directory
        self._papers = papers
        self._deadlines = deadlines
        self._dawn = dawn or Dawn(at_once=1)
        self._waking: asyncio.Task[None] | None = None
        self._called, self._asked = asyncio.Event(), asyncio.Event()
        self._fault: InfrastructureError | None = None
        self._woke_unfit = asyncio.Event()
        self.connection: Connection | None = None

    @property
    def key(self) -> bytes:
        """What its agent obeys, and that of each machine which descends from it; a secret."""
        return self._papers.key

    @property
    def receipt(self) -> IdentityReceipt:
        """What the guest confirmed of its identity."""
        return self._papers.receipt

    @property
    def clock_offset_ns(self) -> int:
        """The guest's wall clock minus the host's, as it is meant to be; 0 unless frozen."""
        return self._papers.clock_offset_ns

    @property
    def timings(self) -> RestoreTimings:
        """How long its coming up took."""
        return self._papers.timings

    async def activate(self) -> None:
        """Have a resting clone run, with the request to set its clock before it. *Not idempotent.*

        It runs when its turn comes, or as soon as something is asked of it by `execute` or `awake`.
        The agent does what it is asked in order: what `execute` asks comes after the clock. Whether
        it runs and its clock was set, `awake` tells; a clone that does not confirm it is dead.
        """
        self._waking = asyncio.create_task(self._wake(), name=f"clone {self.id} wakes")
        self._waking.add_done_callback(_told)

    async def awake(self) -> None:
        """Wake it now, and return once the guest has confirmed its clock. *Idempotent.*

        Before that nothing that it says may be told, and it may not be stopped.

        Raises:
            GuestError: It did not in time, or `identity_unconfirmed`: the clock is off;
                `guest_lost`: the clone was killed or let go of meanwhile.
            EngineError: The hypervisor did not resume.
        """
        waking = self._waking
        if waking is None:
            return
        self._called.set()
        # Not shielded: it is cancelled with the clone, and that is no cancelling of who waits.
        await asyncio.wait([waking])
        if waking.cancelled():
            raise GuestError("the clone was ended while it woke", code="guest_lost")
        waking.result()

    @contextlib.asynccontextmanager
    async def execute(self, what: Command | Code) -> AsyncIterator[Execution]:
        """Run something in the guest, as `Agent.execute`, and tell nothing of it before `awake`.

        One that wakes is asked all the same: it starts this behind that, and saves a round trip.

        Raises:
            VmpoolError: As `Agent.execute`.
            GuestError, EngineError: As `awake`.
        """
        await self._asked_for_time()
        async with contextlib.AsyncExitStack() as stack:
            try:
                execution = await stack.enter_async_context(self.agent.execute(what))
            except VmpoolError:  # a refusal is the guest's word, too
                await self.awake()
                raise
            await self.awake()
            yield execution

    async def _wake(self) -> None:
        try:
            async with self._dawn.turn(self._called), asyncio.TaskGroup() as both:
                both.create_task(self._tell_time())  # before it runs: it finds the request
                both.create_task(self.machine.resume())
        except ExceptionGroup as group:
            err = group.exceptions[0]
            if not isinstance(err, GuestError | EngineError):
                raise
            if err.error_code != "guest_lost":  # of that the machine knows more
                self._fault = err
                self._woke_unfit.set()
            raise err from None

    async def _tell_time(self) -> None:
        self._asked.set()  # whoever is woken by this comes later: the next line asks at once
        await set_clock(
            self.agent, clock_offset_ns=self.clock_offset_ns, timeout=self._deadlines.activate
        )

    async def _asked_for_time(self) -> None:
        """Wake it now if it is to wake, and return once the guest was asked to set its clock."""
        if self._waking is None:
            return
        self._called.set()
        asked = asyncio.ensure_future(self._asked.wait())
        try:
            await asyncio.wait([asked, self._waking], return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()

    async def _stop_waking(self) -> None:
        if self._waking is not None:
            self._waking.cancel()
            await asyncio.wait([self._waking])

    async def become(self, policy: Waking) -> None:
        """Come by other randomness, or another time, as the same as before. *Idempotent.*

        Raises:
            GuestError: The agent did not confirm in time, or `identity_unconfirmed`; call `kill()`.
            HostError, DiskFullError: The papers could not be written; call `kill()`.
        """
        who = Identity.known(self.receipt.hostname, self.receipt.machine_id)
        offset_ns = policy.clock_offset_ns(time.time_ns())
        receipt = await identify(
            self.agent,
            who,
            rng=policy.rng,
            clock_offset_ns=offset_ns,
            timeout=self._deadlines.identify,
        )
        self._papers = structs.replace(self._papers, receipt=receipt, clock_offset_ns=offset_ns)
        await asyncio.to_thread(self._papers.write, self.directory)

    async def join(self, connection: Connection) -> None:
        """Plug a network in; from then on the connection is the clone's. *Not idempotent.*

        Raises:
            ConflictError: `nic_missing`; the connection is still the caller's, here and below.
            EngineError: The hypervisor refused or failed.
            HostError, DiskFullError: Nothing could be noted of it.
        """
        # Noted first: a slot that a machine has and no directory names would be cleared away.
        await asyncio.to_thread(Plug(slot=connection.number).write, self.directory)
        await self.machine.connect(connection.tap)
        connection.given()
        self.connection = connection

    def rejoin(self, connection: Connection) -> None:
        """Hold the connection that the machine has already."""
        self.connection = connection

    async def leave(self) -> None:
        """Pull the network out and give it back. *Idempotent.*

        Raises:
            EngineError: The hypervisor failed; what it still holds leads nowhere.
        """
        try:
            await self.machine.disconnect()
        finally:
            # One that was taken over by its guest may say no; that is not its to decide.
            connection, self.connection = self.connection, None
            if connection is not None:
                await connection.close()

    async def wait_dead(self) -> None:
        """Return once the machine has ended, the agent link is lost, or it woke unfit."""
        waits: list[asyncio.Future[object]] = [
            asyncio.ensure_future(self.machine.wait()),
            asyncio.ensure_future(self.agent.wait_closed()),
            asyncio.ensure_future(self._woke_unfit.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def obituary(self) -> InfrastructureError:
        """Return of what the machine died, as an error to raise; once, after `wait_dead`."""
        if isinstance(self._fault, GuestError):
            return self._fault
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OBITUARY_TIMEOUT):
                return await self.machine.obituary()
        lost = GuestError("the agent is lost, though its machine still runs", code="guest_lost")
        return self._fault or lost

    async def release(self) -> None:
        """Let go of the clone, which runs on for whoever adopts it. *Idempotent.*

        What runs in it over the agent link ends; what was started to stay does not.
        """
        await uninterrupted(self._let_go())

    async def kill(self) -> None:
        """End the machine and remove everything of it. *Idempotent*, completes when cancelled."""
        await uninterrupted(self._end())

    async def _let_go(self) -> None:
        await self._stop_waking()
        await self.agent.close()
        if self.connection is not None:
            await self.connection.release()
        await self.machine.release()

    async def _end(self) -> None:
        await self._stop_waking()
        await self.agent.close()
        try:
            await self.machine.kill()
        finally:
            if self.connection is not None:
                await self.connection.close()
        await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)


def _told(waking: asyncio.Task[None]) -> None:
    """Count a failure as told: whoever asks is, and there may be nobody who does."""
    if not waking.cancelled():
        waking.exception()
