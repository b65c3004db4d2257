"""Clone: a machine restored from a snapshot, plus all that it holds.

The recipe of one restore: directory, hypervisor, state, agent link, identity, a first run, rest;
of a descent, the same without the last two.
A clone that fails at any step is killed and nothing of it is left; one that does not confirm its
identity is never returned. It knows no pool and no sandbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import shutil
import time
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Protocol

from vmpool.agent import connect, new_key
from vmpool.cancellation import uninterrupted
from vmpool.errors import DiskFullError, GuestError, HostError
from vmpool.model import Attachment, Code, Exited, Identity, new_id

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.agent import Agent
    from vmpool.engine import Engine, Machine
    from vmpool.errors import InfrastructureError
    from vmpool.model import IdentityReceipt
    from vmpool.snapshot import Snapshot

log = logging.getLogger(__name__)

OBITUARY_TIMEOUT = 1.0
"""Seconds that a hypervisor may outlive its guest's agent and still count as the cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreTimings:
    """How long each phase of one restore took, in nanoseconds of the monotonic clock.

    Attributes:
        spawn_ns: Start of the hypervisor until it waits for a state.
        load_ns: Loading the device state over the privately mapped memory.
        resume_ns: Letting the virtual CPUs run.
        hello_ns: Until the agent answered.
        identify_ns: Until the agent confirmed the clone's identity.
        warm_ns: One trivial execution, so that the holder's first is not the guest's first; 0 for
            a clone that goes on where another was.
        rest_ns: Stopping the virtual CPUs again; 0 likewise.
    """

    spawn_ns: int
    load_ns: int
    resume_ns: int
    hello_ns: int
    identify_ns: int
    warm_ns: int = 0
    rest_ns: int = 0

    @property
    def total_ns(self) -> int:
        """All phases together."""
        return sum(getattr(self, phase.name) for phase in fields(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreDeadlines:
    """Seconds that a restore may take before it is given up; infrastructure, not task time."""

    hello: float = 5.0
    identify: float = 10.0
    warm: float = 30.0
    activate: float = 2.0


class _Stopwatch:
    """Laps of the monotonic clock."""

    def __init__(self) -> None:
        self._last = time.perf_counter_ns()

    def lap(self) -> int:
        """Return the nanoseconds since the last lap."""
        now = time.perf_counter_ns()
        lap, self._last = now - self._last, now
        return lap


class Clone:
    """A restored, identified machine with its agent link and its directory.

    Made by `restore` or `descend`; whoever holds it calls `kill`.

    Attributes:
        key: What its agent obeys, and that of each machine which descends from it.
    """

    def __init__(
        self,
        *,
        id: str,
        machine: Machine,
        agent: Agent,
        key: bytes,
        directory: Path,
        receipt: IdentityReceipt,
        timings: RestoreTimings,
        deadlines: RestoreDeadlines,
    ) -> None:
        self.id = id
        self.machine = machine
        self.agent = agent
        self.key = key
        self.directory = directory
        self.receipt = receipt
        self.timings = timings
        self._deadlines = deadlines

    async def activate(self) -> None:
        """Wake a resting clone and set its clock. *Not idempotent.*

        Raises:
            EngineError: The hypervisor did not resume; call `kill()`.
            GuestError: The agent did not confirm the clock in time, or `identity_unconfirmed`: it
                is off; call `kill()`.
        """
        # Asked before it wakes, so that it finds the request when it does.
        asking = asyncio.create_task(self.agent.set_clock(timeout=self._deadlines.activate))
        try:
            await self.machine.resume()
            error_ns = await asking
        finally:
            asking.cancel()
            await asyncio.wait([asking])
        if abs(error_ns) > MAX_CLOCK_ERROR_NS:
            raise GuestError(
                f"the guest's clock is off by {error_ns} ns after it was set",
                code="identity_unconfirmed",
            )

    async def wait_dead(self) -> None:
        """Return once the machine has ended or the agent link is lost."""
        waits = [
            asyncio.ensure_future(self.machine.wait()),
            asyncio.ensure_future(self.agent.wait_closed()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def obituary(self) -> InfrastructureError:
        """Return of what the machine died, as an error to raise; once, after `wait_dead`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(OBITUARY_TIMEOUT):
                return await self.machine.obituary()
        return GuestError("the agent is lost, though its machine still runs", code="guest_lost")

    async def kill(self) -> None:
        """End the machine and remove everything of it. *Idempotent*, completes when cancelled."""
        await uninterrupted(self._end())

    async def _end(self) -> None:
        await self.agent.close()
        await self.machine.kill()
        await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)


async def restore(
    engine: Engine,
    template: Snapshot,
    *,
    run: Path,
    deadlines: RestoreDeadlines,
) -> Clone:
    """Restore a clone and leave it resting: paused, identified and warm.

    On any failure and on cancellation the machine is killed and its directory removed.

    Args:
        engine: What starts the hypervisor.
        template: Whose clone it becomes.
        run: Directory that clones' directories are made in.
        deadlines: When to give up on the guest.

    Raises:
        EngineError: The hypervisor failed.
        SnapshotError: The state could not be loaded.
        GuestError: The guest did not answer, confirm or run in time.
        DiskFullError: There is no room for the clone's directory.
    """
    async with contextlib.AsyncExitStack() as undo:
        woken = await _wake(
            undo,
            engine,
            template=template,
            state=template,
            key=new_key(),
            run=run,
            deadlines=deadlines,
        )
        watch = _Stopwatch()
        await warm(woken.agent, timeout=deadlines.warm)
        warm_ns = watch.lap()
        await woken.machine.pause()
        woken.timings = replace(woken.timings, warm_ns=warm_ns, rest_ns=watch.lap())
        undo.pop_all()
    log.debug("clone=%s restored in %.1f ms", woken.id, woken.timings.total_ns / 1e6)
    return woken


async def descend(
    engine: Engine,
    template: Snapshot,
    checkpoint: Snapshot,
    *,
    key: bytes,
    run: Path,
    deadlines: RestoreDeadlines,
) -> Clone:
    """Restore a clone that goes on where a checkpoint was taken, under an identity of its own.

    What the parent's host had running in the guest over its link ends, as it does whenever a host
    is gone; what was started to stay goes on. The clone runs; nothing more has run in it.

    On any failure and on cancellation the machine is killed and its directory removed.

    Args:
        engine: What starts the hypervisor.
        template: What the checkpoint was written against.
        checkpoint: The state.
        key: Of the clone that the checkpoint was taken of.
        run: Directory that clones' directories are made in.
        deadlines: When to give up on the guest.

    Raises:
        VmpoolError: As `restore`.
    """
    async with contextlib.AsyncExitStack() as undo:
        woken = await _wake(
            undo,
            engine,
            template=template,
            state=checkpoint,
            key=key,
            run=run,
            deadlines=deadlines,
        )
        undo.pop_all()
    snapshot_id = checkpoint.manifest.id
    log.debug("clone=%s descends from checkpoint=%s", woken.id, snapshot_id)
    return woken


async def _wake(
    undo: contextlib.AsyncExitStack,
    engine: Engine,
    *,
    template: Snapshot,
    state: Snapshot,
    key: bytes,
    run: Path,
    deadlines: RestoreDeadlines,
) -> Clone:
    """Return a clone that runs and is identified; `undo` has what ends it."""
    watch = _Stopwatch()
    directory = claim_directory(run)
    undo.callback(shutil.rmtree, directory, ignore_errors=True)
    shell = await engine.prepare(template, Attachment(directory=directory))
    undo.push_async_callback(_finish_kill, shell)
    spawn_ns = watch.lap()
    machine = await shell.load(state)
    undo.push_async_callback(_finish_kill, machine)
    load_ns = watch.lap()
    await machine.resume()
    resume_ns = watch.lap()
    agent, receipt, identify_ns = await _introduce(machine, key, directory.name, deadlines)
    undo.push_async_callback(agent.close)
    timings = RestoreTimings(
        spawn_ns=spawn_ns,
        load_ns=load_ns,
        resume_ns=resume_ns,
        hello_ns=watch.lap() - identify_ns,
        identify_ns=identify_ns,
    )
    return Clone(
        id=directory.name,
        machine=machine,
        agent=agent,
        key=key,
        directory=directory,
        receipt=receipt,
        timings=timings,
        deadlines=deadlines,
    )


async def _introduce(
    machine: Machine, key: bytes, hostname: str, deadlines: RestoreDeadlines
) -> tuple[Agent, IdentityReceipt, int]:
    """Claim a restored machine's agent and have it take its identity.

    Over vsock the guest resets its connections when it finds that it was restored, which may be
    after it has answered one: then the same key opens the next.

    Returns:
        The agent, which is the caller's to close, its receipt, and how long that took it in ns.

    Raises:
        GuestError: It did not answer in time, obeys another, or did not confirm.
    """
    last_try = time.monotonic() + deadlines.hello
    while True:
        agent = await connect(machine.agent_address, key=key, timeout=deadlines.hello)
        watch = _Stopwatch()
        try:
            receipt = await identify(agent, hostname=hostname, timeout=deadlines.identify)
        except BaseException as err:
            await agent.close()
            reset = isinstance(err, GuestError) and err.error_code == "guest_lost"
            if not reset or time.monotonic() > last_try:
                raise
            log.debug("clone=%s reset its connection, connecting again", hostname)
        else:
            return agent, receipt, watch.lap()


def claim_directory(run: Path) -> Path:
    """Create a directory of a machine's own in `run`; its name is the machine's.

    Raises:
        DiskFullError: The disk is full.
        HostError: `state_unwritable`; the directory cannot be created.
    """
    directory = run / new_id()
    try:
        directory.mkdir(mode=0o700)
    except OSError as err:
        if err.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError(f"no space for a machine in {str(run)!r}") from err
        raise HostError(
            f"cannot create a directory in {str(run)!r}: {err.strerror}", code="state_unwritable"
        ) from err
    return directory


async def identify(agent: Agent, *, hostname: str, timeout: float) -> IdentityReceipt:
    """Give a guest an identity of its own and check the agent's word that it took.

    Raises:
        GuestError: `identity_unconfirmed` when what the guest reads back is not what was set.
    """
    identity = Identity.fresh(hostname)
    receipt = await agent.identify(identity, timeout=timeout)
    wrong = _unconfirmed(identity, receipt)
    if wrong:
        raise GuestError(
            f"the guest did not take its identity: {wrong}", code="identity_unconfirmed"
        )
    return receipt


MAX_CLOCK_ERROR_NS = 1_000_000_000
"""A guest whose clock is further off than this after it was set has not set it."""

MIN_ENTROPY_BITS = 256
"""Entropy that must have been credited before a clone may be used."""


def _unconfirmed(identity: Identity, receipt: IdentityReceipt) -> str:
    """Return what of `identity` the receipt does not confirm, empty when it confirms all."""
    checks = {
        f"hostname {receipt.hostname!r}": receipt.hostname == identity.hostname,
        f"machine id {receipt.machine_id!r}": receipt.machine_id == identity.machine_id,
        f"{receipt.entropy_bits} bits of entropy": receipt.entropy_bits >= MIN_ENTROPY_BITS,
        f"clock off by {receipt.clock_error_ns} ns": abs(receipt.clock_error_ns)
        <= MAX_CLOCK_ERROR_NS,
        f"generators {receipt.generators!r}": "random" in receipt.generators,
        "no boot id": bool(receipt.boot_id),
    }
    return ", ".join(what for what, confirmed in checks.items() if not confirmed)


async def warm(agent: Agent, *, timeout: float) -> None:
    """Run one line in the warm interpreter, touching the pages that every execution touches.

    Raises:
        GuestError: The line did not run, or not in time.
    """
    limit = asyncio.timeout(timeout)
    try:
        async with limit, agent.execute(Code(source="print(6*7)")) as execution:
            last = [event async for event in execution][-1]
    except TimeoutError as err:
        if not limit.expired():
            raise
        raise GuestError(
            f"a trivial run in the guest did not end within {timeout} s", code="guest_unresponsive"
        ) from err
    if not isinstance(last, Exited) or last.exit_code != 0:
        raise GuestError(f"a trivial run in the guest ended with {last!r}", code="guest_unfit")


class _Killable(Protocol):
    async def kill(self) -> None: ...


async def _finish_kill(what: _Killable) -> None:
    await uninterrupted(what.kill())
