"""The host's agent, connected to a fake guest, and what it says of runs in it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests import fake_guest
from vmpool.agent import Agent, connect
from vmpool.model import Code, Command, Output, SerialAddress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vmpool.model import ExecutionEvent


@asynccontextmanager
async def connected(guest: Path) -> AsyncIterator[Agent]:
    """Connect to a guest's socket for the length of a block."""
    async with await connect(SerialAddress(path=guest), key=fake_guest.KEY, timeout=10) as agent:
        yield agent


async def run(agent: Agent, what: Command | Code) -> list[ExecutionEvent]:
    """Run something to its end; return all that it said."""
    async with asyncio.timeout(30), agent.execute(what) as execution:
        return [event async for event in execution]


def output(events: list[ExecutionEvent], stream: str = "stdout") -> bytes:
    """Return what was written to one of the streams."""
    return b"".join(e.data for e in events if isinstance(e, Output) and e.stream == stream)
