"""Contexts in a real guest: what notebooks show, what runs wild, and what a child inherits."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import pytest

import vmpool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.serving import Server

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host]

PLOT = """
import matplotlib.pyplot as plt
import pandas as pd
plt.plot([1, 2, 3])
plt.show()
print("between")
plt.plot([3, 2, 1])
pd.DataFrame({"a": [1, 2]})
"""
HOARD = "held = []\nwhile True: held.append(bytearray(b'x' * (1 << 24)))"
FORKS = "import os\nprint('begun', flush=True)\nwhile True: os.fork()"
DRAW = "import random, numpy; (random.random(), numpy.random.rand())"


@pytest.fixture
async def client(server: Server) -> AsyncIterator[vmpool.AsyncClient]:
    """A client of the shared server."""
    async with vmpool.AsyncClient(server.url, token=server.ground.token) as connected:
        yield connected


def kinds(result: Any) -> list[tuple[bool, list[str]]]:
    """Return of what forms each display is, and whether it is the cell's value."""
    return [(shown.is_main, sorted(shown.mime)) for shown in result.displays]


def text(result: vmpool.Result) -> str:
    """Return the text of a cell's value."""
    assert result.value is not None, result
    return result.value.text


async def test_figures_and_frames_are_shown_as_a_notebook_shows_them(
    client: vmpool.AsyncClient,
) -> None:
    async with client.sandbox() as sandbox:
        result = (await sandbox.run_code(PLOT)).check()
        again = (await sandbox.run_code("figure, axes = plt.subplots(); None")).check()
        user = await sandbox.run_code("!whoami; pwd")
    png = ["e2b/chart", "image/png", "text/plain"]
    frame = ["e2b/data", "text/html", "text/plain"]
    assert kinds(result) == [(False, png), (True, frame), (False, png)]
    assert base64.b64decode(result.displays[0].mime["image/png"]).startswith(b"\x89PNG")
    assert kinds(again) == [(False, ["image/png", "text/plain"])]  # it shows nothing yet
    assert user.stdout == "user\n/home/user\n"


async def test_code_that_takes_all_memory_loses_its_context_and_nothing_else(
    client: vmpool.AsyncClient,
) -> None:
    async with client.sandbox() as sandbox:
        await sandbox.run_code("kept=1", language="bash")
        result = await sandbox.run_code(HOARD, timeout=120)
        assert (result.signal, result.out_of_memory, result.context_lost) == (9, True, True)
        assert (await sandbox.run_code("echo $kept", language="bash")).stdout == "1\n"
        assert text(await sandbox.run_code("'held' in dir()")) == "False"


async def test_code_that_forks_for_ever_costs_its_own_sandbox_alone(
    client: vmpool.AsyncClient,
) -> None:
    async with asyncio.timeout(120), client.sandbox() as wild, client.sandbox() as other:
        running = wild.contexts["default"].exec(FORKS)
        async with running as execution:
            async for event in execution:
                if isinstance(event, vmpool.Output):
                    break
            assert text(await other.run_code("6 * 7")) == "42"
            await wild.kill()


async def test_a_child_has_its_parents_state_and_draws_its_own_numbers(
    client: vmpool.AsyncClient,
) -> None:
    async with client.sandbox() as parent:
        await parent.run_code("x = 41; import random, numpy")
        await parent.run_code("x=41", language="bash")
        children = await parent.fork(2)
        drawn = {text(await one.run_code(DRAW)) for one in (parent, *children)}
        for child in children:
            assert text(await child.run_code("x + 1")) == "42"
            assert (await child.run_code("echo $x", language="bash")).stdout == "41\n"
            told = await child.run_code("import os; os.environ['VMPOOL_SANDBOX_ID']")
            assert text(told) == repr(child.id)
            await child.kill()
    assert len(drawn) == 3
