"""Interrupts of contexts that come when they should hit nothing, and reports that lie."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests import fake_guest
from tests.connected_agent import connected, output
from tests.context_runs import create, run, value
from vmpool.agent.contexts import Cell
from vmpool.model import Exited

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# An agent that outlives a test forks spares when it likes.
pytestmark = pytest.mark.shares_host


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a guest that all tests of the module share."""
    with fake_guest.running(tmp_path_factory.mktemp("guest")) as path:
        yield path


@pytest.mark.parametrize(
    ("language", "source", "after"),
    [
        ("python", "import time; time.sleep(60)", "print('well')"),
        ("bash", f"{'#' * 200_000}\nsleep 60", "echo well"),
    ],
)
async def test_an_interrupt_waits_until_there_is_something_to_interrupt(
    guest: Path, language: str, source: str, after: str
) -> None:
    async with asyncio.timeout(60), connected(guest) as agent:
        context = await create(agent, language)
        async with agent.contexts.run(Cell(context=context, source=source), outer={}) as execution:
            assert await agent.contexts.interrupt(context)
            last = [event async for event in execution][-1]
        again = await run(agent, context, after)
    assert isinstance(last, Exited)
    assert last.exit_code in {1, 130}
    assert (output(again), again[-1]) == (b"well\n", Exited(exit_code=0))


async def test_a_signal_between_two_executions_hits_nothing(guest: Path) -> None:
    async with asyncio.timeout(60), connected(guest) as agent:
        python, bash = await create(agent), await create(agent, "bash")
        pids = {info.id: info.pid for info in await agent.contexts.list()}
        for _ in range(2):
            await run(agent, bash, f"kill -INT {pids[python]}")
            assert await value(agent, python, "import os; os.getpid()") == str(pids[python])


async def test_an_end_of_another_execution_is_not_believed(guest: Path) -> None:
    forged = (
        r"""printf '{"type":"ended","number":0,"exit_code":7}\n' >&199; echo still; sleep 0.1"""
    )
    async with asyncio.timeout(60), connected(guest) as agent:
        events = await run(agent, await create(agent, "bash"), forged)
    assert (output(events), events[-1]) == (b"still\n", Exited(exit_code=0))


async def test_who_misses_the_interrupt_that_ends_its_time_has_another(guest: Path) -> None:
    deaf = "import time\ntry:\n    time.sleep(600)\nexcept KeyboardInterrupt:\n    time.sleep(600)"
    async with connected(guest) as agent:
        context = await create(agent)
        await run(agent, context, "x = 1")
        events = await run(agent, context, deaf, timeout=0.2)
        assert events[-1] == Exited(exit_code=1, timed_out=True)
        assert await value(agent, context, "x") == "1"
