"""The host's agent, connected to a fake guest."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from tests import fake_guest
from vmpool.agent import Agent, connect
from vmpool.model import SerialAddress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@asynccontextmanager
async def connected(guest: Path) -> AsyncIterator[Agent]:
    """Connect to a guest's socket for the length of a block."""
    async with await connect(SerialAddress(path=guest), key=fake_guest.KEY, timeout=10) as agent:
        yield agent
