"""Idleness: when a sandbox has not been used, and nothing has run in it, for as long as it may.

A request in progress counts as use, and so does a process that was started to stay or an execution
in a context: these the guest is asked for, when everything else has been quiet for long enough.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from vmpool.errors import VmpoolError

if TYPE_CHECKING:
    from vmpool.agent import Agent
    from vmpool.sandbox import Sandbox

log = logging.getLogger(__name__)

ASK_SECONDS = 10.0
"""How long a guest may take to say what runs in it; one that does not say is not idle."""

_AT_WORK = {"starting", "busy"}


async def idle(sandbox: Sandbox, limit: float) -> None:
    """Return once a sandbox that runs was idle for `limit` seconds."""
    while True:
        quiet = sandbox.quiet_seconds
        if quiet < limit:
            await asyncio.sleep(limit - quiet)
        elif await _works(sandbox):
            sandbox.touch()
        elif sandbox.quiet_seconds >= limit:
            return


async def _works(sandbox: Sandbox) -> bool:
    try:
        async with asyncio.timeout(ASK_SECONDS):
            return await _busy(sandbox.agent)
    except (VmpoolError, TimeoutError) as err:
        log.warning("sandbox=%s does not say whether it is idle: %s", sandbox.id, err)
        return True


async def _busy(agent: Agent) -> bool:
    """Whether something runs in a guest that was started to stay."""
    if any(process.ended is None for process in await agent.processes.list()):
        return True
    return any(context.state in _AT_WORK for context in await agent.contexts.list())
