"""Restoration: a state is loaded into a waiting hypervisor, runs, and becomes somebody.

The recipe of one restore: directory, hypervisor, state, agent link, identity, a first run, rest,
papers; of a descent, the same without the first run and rest; of a reboot, a kernel in place of the
state. A clone that fails at any step is
killed and nothing of it is left; one that does not confirm its identity is never returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vmpool.agent import Agent, Airtime, Peer, connect, new_key
from vmpool.cancellation import uninterrupted
from vmpool.clone.clone import Clone
from vmpool.clone.introduction import introduce, warm
from vmpool.clone.pace import in_step
from vmpool.clone.papers import Papers
from vmpool.clone.timings import RestoreDeadlines, RestoreTimings, Stopwatch
from vmpool.clone.waiting import claim_directory, stand_by
from vmpool.engine import Machine
from vmpool.errors import GuestError
from vmpool.model import Attachment, Identity, IdentityReceipt, Waking

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from vmpool.clone.dawn import Dawn
    from vmpool.clone.waiting import Waiting
    from vmpool.engine import Engine
    from vmpool.model import Kernel
    from vmpool.snapshot import Snapshot

log = logging.getLogger(__name__)


async def restore(
    engine: Engine,
    template: Snapshot,
    *,
    run: Path,
    deadlines: RestoreDeadlines,
) -> Clone:
    """Restore a clone from nothing, as `restore_into` does into what waits already.

    Args:
        engine: What starts the hypervisor.
        template: Whose clone it becomes.
        run: Directory that clones' directories are made in.
        deadlines: When to give up on the guest.

    Raises:
        VmpoolError: As `stand_by` and `restore_into`.
    """
    return await restore_into(await stand_by(engine, template, run=run), deadlines=deadlines)


async def restore_into(
    waiting: Waiting,
    *,
    deadlines: RestoreDeadlines,
    dawn: Dawn | None = None,
    airtime: Airtime | None = None,
) -> Clone:
    """Restore a clone of a template and leave it resting: paused, identified and warm.

    Args:
        waiting: Becomes the clone. On any failure and on cancellation it is killed, and its
            directory removed.
        deadlines: When to give up on the guest.
        dawn: Says when it wakes once it is activated; `None` for at once.
        airtime: What its guest shares with others; `None` for as much as it takes.

    Raises:
        EngineError: The hypervisor failed.
        SnapshotError: The state could not be loaded.
        GuestError: The guest did not answer, confirm or run in time.
        HostError, DiskFullError: Its papers could not be written.
    """
    birth = _Birth(
        key=new_key(),
        peer=Peer.NEW,
        identity=Identity.fresh(waiting.id),
        policy=Waking(),
        deadlines=deadlines,
        airtime=airtime,
    )
    async with contextlib.AsyncExitStack() as undo:
        woken = await _wake(undo, waiting, waiting.template, birth)
        watch = Stopwatch()
        await warm(woken.agent, timeout=deadlines.warm)
        warm_ns = watch.lap()
        await woken.machine.pause()
        timings = replace(woken.timings, warm_ns=warm_ns, rest_ns=watch.lap())
        clone = _documented(
            waiting.directory, waiting.template, replace(woken, timings=timings), birth, dawn
        )
        undo.pop_all()
    log.debug("clone=%s restored in %.1f ms", clone.id, clone.timings.total_ns / 1e6)
    return clone


async def descend(
    waiting: Waiting,
    checkpoint: Snapshot,
    *,
    key: bytes,
    identity: Identity,
    policy: Waking,
    deadlines: RestoreDeadlines,
    airtime: Airtime | None = None,
) -> Clone:
    """Have a clone go on where a checkpoint was taken.

    What the parent's host had running in the guest over its link ends, as it does whenever a host
    is gone; what was started to stay goes on. The clone runs; nothing more has run in it.

    Args:
        waiting: Becomes the clone. On any failure and on cancellation it is killed, and its
            directory removed.
        checkpoint: The state.
        key: Of the clone that the checkpoint was taken of.
        identity: Who it is from now on: the one that was saved, or somebody new.
        policy: How its random generators and its clock go on.
        deadlines: When to give up on the guest.
        airtime: As of `restore_into`.

    Raises:
        EngineError: The hypervisor failed.
        SnapshotError: The state could not be loaded; `snapshot_unfit` when it does not descend
            from what `waiting` was prepared for.
        GuestError: The guest did not answer or confirm in time.
        HostError, DiskFullError: Its papers could not be written.
    """
    birth = _Birth(
        key=key,
        peer=Peer.USED,
        identity=identity,
        policy=policy,
        deadlines=deadlines,
        airtime=airtime,
    )
    async with contextlib.AsyncExitStack() as undo:
        woken = await _wake(undo, waiting, checkpoint, birth)
        clone = _documented(waiting.directory, waiting.template, woken, birth)
        undo.pop_all()
    log.debug("clone=%s descends from checkpoint=%s", clone.id, checkpoint.manifest.id)
    return clone


async def reboot(
    engine: Engine,
    template: Snapshot,
    state: Snapshot,
    kernel: Kernel,
    *,
    run: Path,
    identity: Callable[[str], Identity],
    policy: Waking,
    deadlines: RestoreDeadlines,
    boot_timeout: float,
    airtime: Airtime | None = None,
) -> Clone:
    """Boot a clone of a template on the disk of a checkpoint.

    Of what was in memory nothing goes on; who it is does. On any failure and on cancellation
    nothing of it is left.

    Args:
        state: The checkpoint; of it only the disk is used.
        kernel: What the template's image is booted with.
        run: Directory that clones' directories are made in.
        identity: Says who a clone of a given id is to be.
        policy: How its random generators and its clock come about.
        deadlines: Of the clone, once it is up.
        boot_timeout: Seconds until it must be, of each of two steps.
        airtime: As of `restore_into`.

    Raises:
        EngineError: The hypervisor failed.
        SnapshotError: `snapshot_unfit`; the checkpoint is not of that template.
        GuestError: The guest ended as it booted, or did not answer or confirm in time, or
            `guest_clock_wrong`.
        HostError, DiskFullError: There is no place for its directory or its papers.
    """
    directory = claim_directory(run)
    birth = _Birth(
        key=new_key(),
        peer=Peer.USED,
        identity=identity(directory.name),
        policy=policy,
        deadlines=deadlines,
        airtime=airtime,
    )
    async with contextlib.AsyncExitStack() as undo:
        undo.push_async_callback(_removed, directory)
        watch = Stopwatch()
        machine = await engine.reboot(template, state, kernel, Attachment(directory=directory))
        undo.push_async_callback(_finish_kill, machine)
        started_ns = watch.lap()
        woken = await _while_it_lives(machine, _come_up(undo, machine, birth, boot_timeout))
        timings = replace(woken.timings, spawn_ns=started_ns)
        clone = _documented(directory, template, replace(woken, timings=timings), birth)
        undo.pop_all()
    log.debug("clone=%s booted in %.1f s", clone.id, clone.timings.total_ns / 1e9)
    return clone


@dataclass(frozen=True, slots=True, kw_only=True)
class _Birth:
    """Who a clone is to be, by when, and what its guest shares with others meanwhile."""

    key: bytes
    peer: Peer
    identity: Identity
    policy: Waking
    deadlines: RestoreDeadlines
    airtime: Airtime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Woken:
    """A machine that runs and is somebody, and nobody's yet."""

    machine: Machine
    agent: Agent
    receipt: IdentityReceipt
    clock_offset_ns: int
    timings: RestoreTimings


async def _wake(
    undo: contextlib.AsyncExitStack, waiting: Waiting, state: Snapshot, birth: _Birth
) -> _Woken:
    """Load a state, let it run and introduce it; `undo` gets what ends it, the directory too."""
    undo.push_async_callback(waiting.kill)
    watch = Stopwatch()
    machine = await waiting.shell.load(state)
    undo.push_async_callback(_finish_kill, machine)
    load_ns = watch.lap()
    await machine.resume()
    resume_ns = watch.lap()
    woken = await _introduced(undo, machine, birth)
    timings = replace(
        woken.timings, spawn_ns=waiting.spawn_ns, load_ns=load_ns, resume_ns=resume_ns
    )
    return replace(woken, timings=timings)


async def _introduced(undo: contextlib.AsyncExitStack, machine: Machine, birth: _Birth) -> _Woken:
    """Introduce a machine that runs; `undo` gets what closes its agent's link."""
    watch = Stopwatch()
    offset_ns = birth.policy.clock_offset_ns(time.time_ns())
    agent, receipt, identify_ns = await introduce(
        machine,
        birth.identity,
        rng=birth.policy.rng,
        clock_offset_ns=offset_ns,
        key=birth.key,
        peer=birth.peer,
        deadlines=birth.deadlines,
        airtime=birth.airtime,
    )
    undo.push_async_callback(agent.close)
    timings = RestoreTimings(
        spawn_ns=0,
        load_ns=0,
        resume_ns=0,
        hello_ns=watch.lap() - identify_ns,
        identify_ns=identify_ns,
    )
    return _Woken(
        machine=machine, agent=agent, receipt=receipt, clock_offset_ns=offset_ns, timings=timings
    )


async def _come_up(
    undo: contextlib.AsyncExitStack, machine: Machine, birth: _Birth, timeout: float
) -> _Woken:
    """Wait until a guest that boots has an interpreter to run code in, and introduce it.

    Not before: it has what it is told confirmed by that interpreter, and its clock would have run
    for long when it says what that shows.

    Args:
        timeout: Seconds for each of two steps, and twice as many for all.
    """
    limit = asyncio.timeout(2 * timeout)
    try:
        async with limit:
            return await _come_up_within(undo, machine, birth, timeout)
    except TimeoutError as err:
        if not limit.expired():
            raise
        raise GuestError(
            f"the guest did not come up within {2 * timeout} s", code="guest_unresponsive"
        ) from err


async def _come_up_within(
    undo: contextlib.AsyncExitStack, machine: Machine, birth: _Birth, timeout: float
) -> _Woken:
    watch = Stopwatch()
    booted = await connect(
        machine.agent_address, key=birth.key, timeout=timeout, airtime=birth.airtime
    )
    async with booted as agent, in_step(agent, timeout=timeout):
        await warm(agent, timeout=timeout)
    warm_ns = watch.lap()
    woken = await _introduced(undo, machine, birth)
    return replace(woken, timings=replace(woken.timings, warm_ns=warm_ns))


async def _while_it_lives(machine: Machine, coming: Awaitable[_Woken]) -> _Woken:
    """Await a guest that boots, and notice at once when its machine ends instead."""
    woken, death = asyncio.ensure_future(coming), asyncio.ensure_future(machine.wait())
    try:
        await asyncio.wait((woken, death), return_when=asyncio.FIRST_COMPLETED)
        if not woken.done():
            cause = await machine.obituary()
            raise GuestError(
                f"the guest ended while it booted: {cause.message}", code="guest_boot_failed"
            ) from cause
        return woken.result()
    finally:
        woken.cancel()
        death.cancel()
        await asyncio.gather(woken, death, return_exceptions=True)


def _documented(
    directory: Path, template: Snapshot, woken: _Woken, birth: _Birth, dawn: Dawn | None = None
) -> Clone:
    """Return the clone, with its papers in its directory.

    Raises:
        HostError, DiskFullError: They could not be written.
    """
    papers = Papers(
        base=template.as_base,
        key=birth.key,
        clock_offset_ns=woken.clock_offset_ns,
        receipt=woken.receipt,
        timings=woken.timings,
    )
    papers.write(directory)
    return Clone(
        machine=woken.machine,
        agent=woken.agent,
        directory=directory,
        papers=papers,
        deadlines=birth.deadlines,
        dawn=dawn,
    )


async def _removed(directory: Path) -> None:
    await uninterrupted(asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True))


async def _finish_kill(machine: Machine) -> None:
    await uninterrupted(machine.kill())
