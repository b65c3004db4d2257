"""A clone is left by its manager and found by another one."""

from __future__ import annotations

import asyncio
import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests import stepping
from tests.fakes import FakeEngine, Faults
from vmpool import clone
from vmpool.agent import Agent
from vmpool.clone import Clone, RestoreDeadlines
from vmpool.clone.papers import FILE
from vmpool.errors import EngineError, GuestError
from vmpool.model import Attachment, ClockPolicy, Code, Command, Exited, Identity, Output, Waking
from vmpool.snapshot import Snapshot

DEADLINES = RestoreDeadlines(hello=30.0, identify=30.0, warm=30.0, activate=30.0)
SHORT = RestoreDeadlines(hello=0.3, identify=0.3, warm=0.3, activate=0.3)
SILENT = RestoreDeadlines(hello=30.0, identify=30.0, warm=30.0, activate=0.3)
MINUTE_NS = 60 * 10**9
HOUR_NS = 60 * MINUTE_NS


@dataclass
class Bench:
    """An engine, a template's snapshot, and a place for clones."""

    engine: FakeEngine
    base: Snapshot
    clones: Path

    async def left(self) -> Path:
        """Return the directory of a clone that was restored and let go of."""
        made = await clone.restore(self.engine, self.base, run=self.clones, deadlines=DEADLINES)
        await made.release()
        return made.directory

    async def adopt(self, directory: Path, deadlines: RestoreDeadlines = DEADLINES) -> Clone:
        return await clone.adopt(self.engine, self.base, directory=directory, deadlines=deadlines)

    async def reap(self, directory: Path) -> None:
        machine = await self.engine.adopt(self.base, Attachment(directory=directory))
        await machine.kill()


@pytest.fixture
def bench(base: Snapshot, engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(engine, base, tmp_path_factory.mktemp("c"))


async def printed(of: Clone, what: Code | Command) -> bytes:
    async with of.agent.execute(what) as execution:
        events = [event async for event in execution]
    assert events[-1] == Exited(exit_code=0)
    return b"".join(event.data for event in events if isinstance(event, Output))


async def test_an_adopted_clone_is_who_it_was_and_does_as_it_is_told(bench: Bench) -> None:
    made = await clone.restore(bench.engine, bench.base, run=bench.clones, deadlines=DEADLINES)
    await made.release()
    adopted = await bench.adopt(made.directory)
    assert adopted is not made
    for what in ("id", "key", "receipt", "timings", "clock_offset_ns", "directory"):
        assert getattr(adopted, what) == getattr(made, what), what
    assert adopted.machine.pid == made.machine.pid
    assert await printed(adopted, Code(source="print(6*7)")) == b"42\n"
    await adopted.kill()
    assert not list(bench.clones.iterdir())


async def test_what_ran_over_the_old_link_is_dead_and_what_was_kept_is_not(bench: Bench) -> None:
    made = await clone.restore(bench.engine, bench.base, run=bench.clones, deadlines=DEADLINES)
    await made.activate()
    sleeper = Command(argv=("sleep", "1000"))
    kept = await made.agent.processes.start(sleeper, tag="kept")
    async with made.agent.execute(sleeper) as execution:
        passing = os.pidfd_open(execution.pid)
        await made.release()
    adopted = await bench.adopt(made.directory)
    listed = await adopted.agent.processes.list()
    assert [(each.pid, each.tag) for each in listed] == [(kept, "kept")]
    os.kill(kept, 0)
    assert await asyncio.to_thread(select.select, [passing], [], [], 10) == ([passing], [], [])
    os.close(passing)
    await adopted.kill()


async def test_a_clock_that_was_frozen_stays_late(bench: Bench) -> None:
    waiting = await clone.stand_by(bench.engine, bench.base, run=bench.clones)
    late = Waking(clock=ClockPolicy.FROZEN, saved_ns=time.time_ns() - HOUR_NS)
    made = await clone.descend(
        waiting,
        bench.base,
        key=bytes(32),
        identity=Identity.fresh("late"),
        policy=late,
        deadlines=DEADLINES,
    )
    await made.release()
    adopted = await bench.adopt(made.directory)
    assert adopted.clock_offset_ns == made.clock_offset_ns < -HOUR_NS
    assert -HOUR_NS - MINUTE_NS < await clock_of(adopted) - time.time_ns() < -HOUR_NS + MINUTE_NS
    await adopted.kill()


async def clock_of(guest: Clone) -> int:
    """Return what a guest's clock showed a moment ago, in ns."""
    await guest.agent.processes.start(Command(argv=("true",)))
    return (await guest.agent.processes.list())[-1].started_ns


def forget(directory: Path) -> None:
    (directory / FILE).unlink()


def cut(directory: Path) -> None:
    papers = directory / FILE
    papers.write_bytes(papers.read_bytes()[:-10])


def be_of_other_memory(directory: Path) -> None:
    papers = directory / FILE
    values = msgspec.json.decode(papers.read_bytes())
    values["base"]["memory"] = "0" * 64
    papers.write_bytes(msgspec.json.encode(values))


@pytest.mark.parametrize("harm", [forget, cut, be_of_other_memory])
async def test_a_clone_of_which_nothing_is_known_is_left_to_be_reaped(
    bench: Bench, harm: Callable[[Path], None]
) -> None:
    directory = await bench.left()
    harm(directory)
    with pytest.raises(EngineError) as raised:
        await bench.adopt(directory)
    assert raised.value.error_code == "clone_unknown"
    await bench.reap(directory)


async def test_one_whose_machine_is_gone_is_lost(bench: Bench) -> None:
    directory = await bench.left()
    await bench.reap(directory)
    with pytest.raises(EngineError) as raised:
        await bench.adopt(directory)
    assert raised.value.error_code == "machine_lost"


@pytest.mark.parametrize(
    ("guest", "deadlines", "code"),
    [
        (("--lie", "clock-later"), DEADLINES, "identity_unconfirmed"),
        (("--ignore", "set_clock"), SILENT, "guest_unresponsive"),
    ],
    ids=["clock", "silent"],
)
async def test_a_guest_that_does_not_confirm_is_left_as_it_was(
    bench: Bench, guest: tuple[str, ...], deadlines: RestoreDeadlines, code: str
) -> None:
    bench.engine.faults = Faults(guest=guest)
    directory = await bench.left()
    with pytest.raises(GuestError) as raised:
        await bench.adopt(directory, deadlines)
    assert raised.value.error_code == code
    await bench.reap(directory)  # it can be found again: nobody ended it


async def test_a_clock_that_was_told_an_old_time_ends_no_adoption(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = await bench.left()
    set_clock, errors_ns = Agent.set_clock, [-2 * 10**9, 2 * 10**9]

    async def late(agent: Agent, **asked: Any) -> int:
        return errors_ns.pop() if errors_ns else await set_clock(agent, **asked)

    monkeypatch.setattr(Agent, "set_clock", late)
    adopted = await bench.adopt(directory)
    assert errors_ns == []
    await adopted.kill()


async def test_a_stranger_is_not_obeyed_by_an_adopted_guest(bench: Bench) -> None:
    directory = await bench.left()
    papers = directory / FILE
    values = msgspec.json.decode(papers.read_bytes())
    values["key"] = "A" * 43 + "="
    papers.write_bytes(msgspec.json.encode(values))
    with pytest.raises(GuestError) as raised:
        await bench.adopt(directory, SHORT)
    assert raised.value.error_code == "guest_unreachable"
    await bench.reap(directory)


async def test_an_adoption_cancelled_at_any_step_can_be_begun_again(bench: Bench) -> None:
    directory = await bench.left()
    places, adopted = await stepping.places(bench.adopt(directory))
    await adopted.release()
    before = asyncio.all_tasks()
    for place in places:
        adopted = await stepping.cancel_at(place, bench.adopt(directory))
        if adopted is not None:
            await adopted.release()
        assert asyncio.all_tasks() == before, place
    adopted = await bench.adopt(directory)
    assert await printed(adopted, Code(source="print(6*7)")) == b"42\n"
    await adopted.kill()
