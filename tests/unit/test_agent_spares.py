"""The warm interpreter and its spares, in the real agent in a process of its own."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests import fake_guest
from tests.connected_agent import connected, output, run
from vmpool.agent import Agent, answers, asking
from vmpool.clone.introduction import warm
from vmpool.errors import GuestError
from vmpool.model import Code, Command, Exited, Identity, Result, Started, Unique
from vmpool_agent import wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

# An agent that outlives a test forks spares when it likes.
pytestmark = pytest.mark.shares_host


async def test_an_interpreters_first_start_may_take_longer_than_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_guest.running(tmp_path) as path:
        async with connected(path) as agent:
            monkeypatch.setattr(asking, "PATIENCE", 0.0)
            with pytest.raises(GuestError, match="gave no answer"):
                await run(agent, Code(source="print(1)"))
            await warm(agent, timeout=30)


async def test_a_run_whose_spare_is_killed_is_given_to_another(tmp_path: Path) -> None:
    with fake_guest.running(tmp_path) as path:
        async with connected(path) as agent:
            for _ in range(5):
                await agent.stock(timeout=10)
                await run(agent, Code(source=KILL_THE_SPARES))
                assert output(await run(agent, Code(source="print(1)"))) == b"1\n"


KILL_THE_SPARES = """
import os
agent = os.getppid()
with open(f"/proc/{agent}/task/{agent}/children") as file:
    for pid in file.read().split()[1:]:  # the first is the warm interpreter
        if int(pid) != os.getpid():
            os.kill(int(pid), 9)
"""


@asynccontextmanager
async def dying(tmp_path: Path, deaths: int) -> AsyncIterator[tuple[Agent, Code]]:
    """Give an agent, and source under which so many spares die as they begin."""
    warm_up = tmp_path / "warm.py"
    warm_up.write_text(DIE_AS_YOU_BEGIN)
    (tmp_path / "deaths").write_text("x" * deaths)
    env = {"DEATHS": str(tmp_path / "deaths")}
    with fake_guest.running(tmp_path, "--warm-up", str(warm_up)) as path:
        async with connected(path) as agent:
            yield agent, Code(source="print(input())", env=env, stdin=True, timeout=20)


async def test_a_run_whose_spare_died_before_it_began_loses_nothing(tmp_path: Path) -> None:
    async with (
        dying(tmp_path, 2) as (agent, source),
        asyncio.timeout(30),
        agent._link.open() as channel,
    ):
        await channel.send_message(answers.execution_request(source))
        await channel.send_data(wire.STDIN, b"all of it\n")  # before anything has begun
        channel.finish()
        started = answers.execution_event(answers.expect(await channel.receive()))
        said = await channel.receive()
        exited = answers.execution_event(answers.expect(await channel.receive()))
    assert isinstance(started, Started)
    assert isinstance(said, wire.Data)
    assert said.payload == b"all of it\n"
    assert exited == Exited(exit_code=0)


async def test_a_run_under_which_every_spare_dies_is_given_up(tmp_path: Path) -> None:
    async with dying(tmp_path, 9) as (agent, source):
        with pytest.raises(GuestError, match="died before it began") as raised:
            await run(agent, source)
        assert output(await run(agent, Code(source="print(1)"))) == b"1\n"
    assert raised.value.error_code == "guest_failed"
    assert len((tmp_path / "deaths").read_text()) == 9 - 3


DIE_AS_YOU_BEGIN = """
import os
from vmpool_agent import spawn
honest = spawn.enter
def enter(system, launch):
    path = os.environ.get("DEATHS")
    if path and (left := os.path.getsize(path)):
        os.truncate(path, left - 1)
        os.kill(os.getpid(), 9)
    honest(system, launch)
spawn.enter = enter
"""


async def test_a_guest_in_which_no_spare_comes_up_says_why(tmp_path: Path) -> None:
    warm_up = tmp_path / "warm.py"
    warm_up.write_text("from vmpool_agent import generators\ngenerators.names = lambda: 1 / 0\n")
    with fake_guest.running(tmp_path, "--warm-up", str(warm_up)) as path:
        async with connected(path) as agent:
            with pytest.raises(GuestError, match="came up: ZeroDivisionError") as raised:
                await run(agent, Code(source="print(1)"))
    assert raised.value.error_code == "guest_failed"


async def test_only_a_spare_for_which_no_run_waits_rehearses(tmp_path: Path) -> None:
    warm_up = tmp_path / "warm.py"
    warm_up.write_text(COUNT_SEEDINGS)
    seedings = Code(source="import builtins\nprint(builtins.seedings)")
    with fake_guest.running(tmp_path, "--warm-up", str(warm_up)) as path:
        async with connected(path) as agent:
            await agent.stock(timeout=10)
            printed = [output(await run(agent, seedings)) for _ in range(2)]
            await run(agent, A_WHILE)
            printed.append(output(await run(agent, seedings)))
            await run(agent, A_WHILE)
            printed.append(output(await run(agent, seedings)))
    assert printed == [b"2\n", b"2\n", b"1\n", b"2\n"]  # the third found none, the last did


A_WHILE = Command(argv=("sleep", "0.5"))
COUNT_SEEDINGS = """
import builtins
from vmpool_agent import generators
builtins.seedings = 0
honest = generators.reseed
def reseed(*told):
    builtins.seedings += 1
    honest(*told)
generators.reseed = reseed
"""


async def test_who_a_clone_is_waits_for_no_spare_once_one_has_spoken(tmp_path: Path) -> None:
    warm_up = tmp_path / "warm.py"
    warm_up.write_text(COUNT_SEEDINGS)
    seedings = Code(source="import builtins\nprint(builtins.seedings)")
    with fake_guest.running(tmp_path, "--warm-up", str(warm_up)) as path:
        async with connected(path) as agent:
            await agent.stock(timeout=10)
            for _ in range(2):  # and from here on there is none
                await run(agent, seedings)
            await run(agent, signalled("STOP"))
            receipt = await agent.identify(Identity.fresh("somebody"), rng=Unique(), timeout=10)
            await run(agent, signalled("CONT"))
            await run(agent, A_WHILE)
            printed = output(await run(agent, seedings))
    assert "random" in receipt.generators
    assert printed == b"2\n"  # one was forked and has rehearsed since


def signalled(name: str) -> Command:
    """Return what sends a signal to the warm interpreter, the agent's oldest child."""
    script = f"read -r oldest _ < /proc/$PPID/task/$PPID/children; kill -{name} $oldest"
    return Command(argv=("bash", "-c", script))


async def test_a_silent_run_has_started_all_the_same(guest: Path) -> None:
    sleeper = Code(source="import time\ntime.sleep(60)")
    async with asyncio.timeout(10), connected(guest) as agent, agent.execute(sleeper) as execution:
        assert execution.pid > 1


async def test_time_that_is_up_before_a_spare_came_is_the_runs_own(tmp_path: Path) -> None:
    warm_up = tmp_path / "warm.py"
    go = tmp_path / "go"
    warm_up.write_text(
        f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.05)\n"
    )
    with fake_guest.running(tmp_path, "--warm-up", str(warm_up)) as path:
        async with connected(path) as agent:
            running = asyncio.create_task(run(agent, Code(source="print(1)", timeout=0.001)))
            await asyncio.sleep(0)  # it asks
            await agent.processes.list()  # answered behind that
            go.touch()
            events = await running
    assert events[-1] == Exited(exit_code=None, signal=signal.SIGKILL, timed_out=True)


async def test_many_runs_of_source_at_once_each_find_a_spare(guest: Path) -> None:
    async with connected(guest) as agent, asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(run(agent, Code(source=f"print({n})"))) for n in range(12)]
    assert [output(task.result()) for task in runs] == [b"%d\n" % n for n in range(12)]


async def test_the_warm_interpreter_gives_memory_back_and_stocks_spares(guest: Path) -> None:
    async with connected(guest) as agent:
        await agent.quiesce(timeout=10)
        await agent.stock(timeout=10)
        assert output(await run(agent, Code(source="print(2)"))) == b"2\n"


async def test_the_warm_interpreter_starts_again_when_it_is_killed(tmp_path: Path) -> None:
    with fake_guest.running(tmp_path) as path:
        await outlive_the_warm_interpreter(path)


KILL_THE_WARM_INTERPRETER = """
import os
agent = os.getppid()
with open(f"/proc/{agent}/task/{agent}/children") as file:
    os.kill(int(file.read().split()[0]), 9)  # the oldest
"""


async def outlive_the_warm_interpreter(guest: Path) -> None:
    sleeper = Code(source="import time\ntime.sleep(1000)")
    async with connected(guest) as agent, agent.execute(sleeper) as survivor:
        await run(agent, Code(source=KILL_THE_WARM_INTERPRETER))
        events = await run(agent, Code(source="print(1)"))
        assert output(events) == b"1\n"
        await survivor.kill()
        last = [event async for event in survivor][-1]
    assert last == Exited(exit_code=None, signal=signal.SIGKILL)


async def test_the_guest_warms_up_once_before_it_forks(tmp_path: Path) -> None:
    script = tmp_path / "warm.py"
    script.write_text("import fractions, sys\nsys.warmed = True\n")
    with fake_guest.running(tmp_path, "--warm-up", str(script)) as path:
        async with connected(path) as agent:
            source = "import sys\n(sys.warmed, 'fractions' in sys.modules)"
            events = await run(agent, Code(source=source))
    assert events[1] == Result({"text/plain": "(True, True)"}, is_main=True)
