"""What has ended, or never began, holds no descriptor of the agent's."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.connected_agent import connected
from vmpool.agent.contexts import Cell, ContextSpec, Language
from vmpool.errors import GuestFileError, InvalidRequestError
from vmpool.model import Command, TerminalSize

if TYPE_CHECKING:
    from vmpool.agent import Agent

# An agent that outlives a test forks spares when it likes.
pytestmark = pytest.mark.shares_host

SIZE = TerminalSize(rows=24, cols=80)
ROUNDS = 4


async def start_nothing(agent: Agent) -> None:
    for terminal in (None, SIZE):
        with pytest.raises(InvalidRequestError):
            await agent.processes.start(Command(argv=("no-such",)), terminal=terminal)


async def start_and_kill(agent: Agent) -> None:
    for terminal in (None, SIZE):
        pid = await agent.processes.start(Command(argv=("cat",), stdin=True), terminal=terminal)
        async with agent.processes.attach(pid):
            await agent.processes.signal(pid, 9)


async def leave_a_program(agent: Agent) -> None:
    async with agent.execute(Command(argv=("sleep", "60"))):
        pass
    with pytest.raises(InvalidRequestError):
        async with agent.execute(Command(argv=("no-such",))):
            pass


async def leave_a_context(agent: Agent) -> None:
    made = await agent.contexts.create(ContextSpec(language=Language.BASH), outer={})
    async with agent.contexts.run(Cell(context=made.id, source="sleep 60"), outer={}):
        pass
    await agent.contexts.restart(made.id)
    await agent.contexts.close(made.id)


async def leave_a_watch(agent: Agent) -> None:
    async with agent.watch("/tmp", user="user", recursive=False):
        pass
    with contextlib.suppress(GuestFileError):
        async with agent.watch("/no/such", user="user", recursive=False):
            pass


def descriptors(agent: Agent) -> int:
    """Return how many descriptors the agent's process holds."""
    ours = agent._link._writer.get_extra_info("socket")
    credentials = ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    (pid,) = struct.unpack("i8x", credentials)
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.parametrize(
    "one",
    [start_nothing, start_and_kill, leave_a_program, leave_a_context, leave_a_watch],
    ids=lambda one: one.__name__,
)
async def test_nothing_leaves_a_descriptor_behind(guest: Path, one: object) -> None:
    assert callable(one)
    async with connected(guest) as agent, asyncio.timeout(30):
        await one(agent)
        before = descriptors(agent)
        for _ in range(ROUNDS):
            await one(agent)
        # What was left may still be on its way out; what leaks grows with each round.
        while descriptors(agent) > before + ROUNDS - 1:
            await agent.processes.list()
