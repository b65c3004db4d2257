"""Adoption: a clone of a manager that is gone is found by its directory and held again.

Nothing in the guest is changed but its clock: it keeps its identity, its generators and what was
started to stay. What ran over the old manager's link ends, as it does whenever a host is gone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from vmpool.agent import Peer, connect
from vmpool.cancellation import uninterrupted
from vmpool.clone import papers
from vmpool.clone.clone import Clone
from vmpool.clone.introduction import set_clock
from vmpool.model import Attachment

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.agent import Airtime
    from vmpool.clone.timings import RestoreDeadlines
    from vmpool.engine import Engine
    from vmpool.snapshot import Snapshot

log = logging.getLogger(__name__)


async def adopt(
    engine: Engine,
    template: Snapshot,
    *,
    directory: Path,
    deadlines: RestoreDeadlines,
    airtime: Airtime | None = None,
) -> Clone:
    """Return the clone that a manager which is gone has left in a directory; it runs.

    On any failure and on cancellation what there is runs on: to reap it, by its directory, is the
    caller's to decide.

    Args:
        template: What its hypervisor maps.
        airtime: What its guest shares with others; `None` for as much as it takes.

    Raises:
        EngineError: `clone_unknown` when nothing in the directory says how to reach it;
            `machine_lost` when there is no such machine any more; the hypervisor failed.
        GuestError: The agent did not answer or set its clock in time, or `identity_unconfirmed`.
    """
    known = await asyncio.to_thread(papers.read, directory, template.as_base)
    machine = await engine.adopt(template, Attachment(directory=directory))
    try:
        agent = await connect(
            machine.agent_address,
            key=known.key,
            peer=Peer.USED,
            timeout=deadlines.hello,
            airtime=airtime,
        )
        try:
            offset_ns = known.clock_offset_ns
            await set_clock(agent, clock_offset_ns=offset_ns, timeout=deadlines.identify)
        except BaseException:
            await agent.close()
            raise
    except BaseException:
        await uninterrupted(machine.release())
        raise
    log.info("clone=%s adopted", directory.name)
    return Clone(
        machine=machine, agent=agent, directory=directory, papers=known, deadlines=deadlines
    )
