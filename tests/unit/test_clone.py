"""One restore: what it leaves when it fails, is cancelled, or meets a guest that lies."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest

from tests import stepping
from tests.fakes import FakeEngine, Faults
from vmpool import clone
from vmpool.clone import Dawn, RestoreDeadlines
from vmpool.clone.introduction import MAX_CLOCK_ERROR_NS
from vmpool.errors import (
    CapacityError,
    EngineError,
    GuestError,
    HostError,
    InvalidRequestError,
    TaskError,
)
from vmpool.model import Code, Exited, Output
from vmpool.snapshot import Snapshot

if TYPE_CHECKING:
    from vmpool.clone import Clone
    from vmpool.errors import VmpoolError
    from vmpool.network.connection import Connection

DEADLINES = RestoreDeadlines(hello=30.0, identify=30.0, warm=30.0, activate=30.0)
FAILED = EngineError("as the test wants it", code="qmp_refused")


@dataclass
class Bench:
    """An engine, a template's snapshot, and a place for clones."""

    engine: FakeEngine
    base: Snapshot
    clones: Path

    async def restore(self, **deadlines: float) -> Clone:
        return await clone.restore(
            self.engine, self.base, run=self.clones, deadlines=replace(DEADLINES, **deadlines)
        )


@pytest.fixture
def bench(base: Snapshot, engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(engine, base, tmp_path_factory.mktemp("c"))


async def test_a_restored_clone_rests_and_says_how_long_each_phase_took(bench: Bench) -> None:
    restored = await bench.restore()
    try:
        assert restored.directory.parent == bench.clones
        assert restored.receipt.hostname == restored.id
        phases = {
            phase.name: getattr(restored.timings, phase.name) for phase in fields(restored.timings)
        }
        assert set(phases) == {
            f"{name}_ns"
            for name in ("spawn", "load", "resume", "hello", "identify", "warm", "rest")
        }
        assert all(took > 0 for took in phases.values()), phases
        assert restored.timings.total_ns == sum(phases.values())
        with pytest.raises(GuestError) as raised:
            await restored.agent.set_clock(timeout=0.1)
        assert raised.value.error_code == "guest_unresponsive"
    finally:
        await restored.kill()


async def test_an_activated_clone_runs_code(bench: Bench) -> None:
    restored = await bench.restore()
    await restored.activate()
    async with restored.agent.execute(Code(source="print(6*7)")) as execution:
        events = [event async for event in execution]
    assert b"".join(e.data for e in events if isinstance(e, Output)) == b"42\n"
    assert events[-1] == Exited(exit_code=0)
    await restored.kill()


async def test_killing_is_idempotent_and_leaves_nothing(bench: Bench) -> None:
    restored = await bench.restore()
    await asyncio.gather(restored.kill(), restored.kill())
    await restored.kill()
    assert not list(bench.clones.iterdir())


async def test_a_kill_goes_on_however_often_its_caller_is_cancelled(bench: Bench) -> None:
    restored = await bench.restore()
    killing = asyncio.create_task(restored.kill())
    await asyncio.sleep(0)
    while not killing.done():
        killing.cancel()
        await asyncio.sleep(0)
    assert killing.cancelled()
    assert not list(bench.clones.iterdir())


@pytest.mark.parametrize("insistence", stepping.Insistence)
async def test_a_restore_cancelled_at_any_step_leaves_nothing(
    bench: Bench, insistence: stepping.Insistence
) -> None:
    places, restored = await stepping.places(bench.restore())
    await restored.kill()
    assert len(places) > 5, places
    before = asyncio.all_tasks()
    for place in places:
        restored = await stepping.cancel_at(place, bench.restore(), insistence)
        if restored is not None:  # a place that it does not always come by
            await restored.kill()
        assert not list(bench.clones.iterdir()), place
        assert asyncio.all_tasks() == before, place


@pytest.mark.parametrize(
    "faults",
    [
        Faults(prepare=FAILED),
        Faults(load=FAILED),
        Faults(resume=FAILED),
        Faults(pause=FAILED),
    ],
    ids=["prepare", "load", "resume", "pause"],
)
async def test_a_step_of_the_engine_that_fails_leaves_nothing(bench: Bench, faults: Faults) -> None:
    bench.engine.faults = faults
    with pytest.raises(EngineError) as raised:
        await bench.restore()
    assert raised.value is FAILED
    assert not list(bench.clones.iterdir())


@pytest.mark.parametrize(
    ("guest", "deadline", "code"),
    [
        (("--lie", "silence"), "hello", "guest_unreachable"),
        (("--ignore", "identify"), "identify", "guest_unresponsive"),
    ],
    ids=["hello", "identify"],
)
async def test_an_agent_that_never_answers_ends_at_its_deadline(
    bench: Bench, guest: tuple[str, ...], deadline: str, code: str
) -> None:
    bench.engine.faults = Faults(guest=guest)
    with pytest.raises(GuestError) as raised:
        await bench.restore(**{deadline: 0.3})
    assert raised.value.error_code == code
    assert not list(bench.clones.iterdir())


async def test_a_guest_that_never_runs_its_first_line_ends_at_its_deadline(bench: Bench) -> None:
    bench.engine.faults = Faults(guest=("--ignore", "code"))
    with pytest.raises(GuestError) as raised:
        await bench.restore(warm=0.3)
    assert raised.value.error_code == "guest_unresponsive"
    assert not list(bench.clones.iterdir())


@pytest.mark.parametrize(
    "lie", ["boot-id", "clock", "entropy", "generators", "hostname", "machine-id"]
)
async def test_a_guest_that_does_not_confirm_its_identity_is_killed(bench: Bench, lie: str) -> None:
    bench.engine.faults = Faults(guest=("--lie", lie))
    with pytest.raises(GuestError) as raised:
        await bench.restore()
    assert raised.value.error_code == "identity_unconfirmed"
    assert lie.replace("-", " ") in raised.value.message
    assert not list(bench.clones.iterdir())


async def test_a_guest_whose_clock_is_off_at_first_is_told_the_time_again(bench: Bench) -> None:
    bench.engine.faults = Faults(guest=("--lie", "clock-at-first"))
    restored = await bench.restore()
    assert abs(restored.receipt.clock_error_ns) < MAX_CLOCK_ERROR_NS
    await restored.kill()


async def test_a_guest_that_resets_its_first_connections_is_asked_again(bench: Bench) -> None:
    bench.engine.faults = Faults(guest=("--lie", "reset"))
    restored = await bench.restore()
    assert restored.receipt.hostname == restored.id
    await restored.kill()


async def test_a_guest_that_always_resets_ends_at_the_deadline(bench: Bench) -> None:
    bench.engine.faults = Faults(guest=("--lie", "reset"))
    with pytest.raises(GuestError) as raised:
        await bench.restore(hello=1e-9)
    assert raised.value.error_code in {"guest_lost", "guest_unreachable"}
    assert not list(bench.clones.iterdir())


async def test_a_ready_clone_whose_clock_is_off_is_dead_of_that(bench: Bench) -> None:
    bench.engine.faults = Faults(guest=("--lie", "clock-later"))
    restored = await bench.restore()
    await restored.activate()
    with pytest.raises(GuestError) as raised:
        await restored.awake()
    assert raised.value.error_code == "identity_unconfirmed"
    await restored.wait_dead()
    assert await restored.obituary() is raised.value
    await restored.kill()


@pytest.mark.parametrize(
    "refusal",
    [
        InvalidRequestError("no such operation", code="bad_request"),
        TaskError("no memory", code="guest_no_resources"),
        CapacityError("no channel", code="too_many_channels"),
    ],
    ids=lambda refusal: refusal.error_code,
)
async def test_a_clone_that_refuses_to_set_its_clock_is_dead_of_that(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, refusal: VmpoolError
) -> None:
    restored = await bench.restore()

    async def refuse(**_: Any) -> int:
        raise refusal

    monkeypatch.setattr(restored.agent, "set_clock", refuse)
    await restored.activate()
    with pytest.raises(GuestError) as raised:
        await restored.awake()
    assert raised.value.error_code == "identity_unconfirmed"
    await restored.wait_dead()
    assert await restored.obituary() is raised.value
    await restored.kill()


async def test_a_clock_that_was_told_an_old_time_is_told_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored = await bench.restore()
    set_clock, errors_ns = restored.agent.set_clock, [-2 * 10**9, 2 * 10**9]

    async def late(**asked: Any) -> int:
        return errors_ns.pop() if errors_ns else await set_clock(**asked)

    monkeypatch.setattr(restored.agent, "set_clock", late)
    await restored.activate()
    await restored.awake()
    assert errors_ns == []
    await restored.kill()


async def test_a_clone_that_does_not_wake_is_dead_at_the_deadline(bench: Bench) -> None:
    bench.engine.faults = Faults(guest=("--ignore", "set_clock"))
    restored = await bench.restore(activate=0.3)
    await restored.activate()
    await restored.wait_dead()
    assert (await restored.obituary()).error_code == "guest_unresponsive"
    await restored.kill()


async def test_what_is_asked_of_a_clone_that_wakes_is_done_after_its_clock_was_set(
    bench: Bench,
) -> None:
    restored = await bench.restore()
    await restored.activate()
    await restored._asked_for_time()
    async with restored.agent.execute(Code(source="print(6*7)")):
        assert restored._waking is not None
        assert restored._waking.done()
        await restored.awake()
    await restored.kill()


async def test_a_clone_that_is_asked_something_before_its_turn_wakes_for_that(
    bench: Bench,
) -> None:
    dawn, asleep = Dawn(at_once=1), []
    async with dawn.turn(asyncio.Event()):  # of another one
        for _ in range(2):
            waiting = await clone.stand_by(bench.engine, bench.base, run=bench.clones)
            asleep.append(await clone.restore_into(waiting, deadlines=DEADLINES, dawn=dawn))
            await asleep[-1].activate()
        async with asleep[1].execute(Code(source="print(6*7)")) as execution:
            events = [event async for event in execution]
        assert events[-1] == Exited(exit_code=0)
        assert not asleep[0]._asked.is_set()
        await asleep[0].awake()
        assert asleep[0]._asked.is_set()
    for one in asleep:
        await one.kill()


async def test_a_clone_whose_hypervisor_does_not_resume_is_dead_of_that(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored = await bench.restore()

    async def refuse() -> None:
        raise FAILED

    monkeypatch.setattr(restored.machine, "resume", refuse)
    await restored.activate()
    with pytest.raises(EngineError) as raised:
        await restored.awake()
    assert raised.value is FAILED
    await restored.wait_dead()
    assert await restored.obituary() is FAILED
    await restored.kill()


async def test_a_clone_that_is_killed_as_it_wakes_leaves_nothing(bench: Bench) -> None:
    before = asyncio.all_tasks()
    restored = await bench.restore()
    await restored.activate()
    await restored.kill()
    assert asyncio.all_tasks() == before


async def test_who_waits_for_a_clone_that_is_killed_as_it_wakes_is_told_so(bench: Bench) -> None:
    bench.engine.faults = Faults(guest=("--ignore", "set_clock"))
    restored = await bench.restore()
    await restored.activate()
    waiter = asyncio.create_task(restored.awake())
    await asyncio.sleep(0)
    await restored.kill()
    for waiting in (waiter, restored.awake()):
        with pytest.raises(GuestError) as raised:
            await waiting
        assert raised.value.error_code == "guest_lost"


async def test_a_guest_that_is_lost_is_mourned_by_its_cause(bench: Bench) -> None:
    panicked = GuestError("the guest's kernel panicked", code="guest_panicked")
    bench.engine.faults = Faults(death=panicked)
    restored = await bench.restore()
    os.kill(restored.machine.pid, signal.SIGKILL)
    await restored.wait_dead()
    assert await restored.obituary() is panicked
    await restored.kill()


async def test_an_agent_lost_from_a_machine_that_lives_is_told_as_such(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmpool.clone.clone.OBITUARY_TIMEOUT", 0.05)
    restored = await bench.restore()
    await restored.agent.close()
    await restored.wait_dead()
    assert (await restored.obituary()).error_code == "guest_lost"
    await restored.kill()


class Plugged:
    """A network that is plugged in."""

    closed = False

    async def close(self) -> None:
        self.closed = True


async def test_a_network_ends_although_the_hypervisor_does_not_let_go_of_it(bench: Bench) -> None:
    bench.engine.faults = Faults(disconnect=FAILED)
    restored, plugged = await bench.restore(), Plugged()
    restored.connection = cast("Connection", plugged)
    with pytest.raises(EngineError):
        await restored.leave()
    assert plugged.closed
    assert restored.connection is None
    await restored.kill()


async def test_a_network_ends_although_the_machine_cannot_be_killed(bench: Bench) -> None:
    bench.engine.faults = Faults(kill=FAILED)
    restored, plugged = await bench.restore(), Plugged()
    restored.connection = cast("Connection", plugged)
    with pytest.raises(EngineError):
        await restored.kill()
    assert plugged.closed


async def test_a_clone_that_has_no_place_is_an_error_of_ours(bench: Bench) -> None:
    with pytest.raises(HostError) as raised:
        await clone.restore(
            bench.engine, bench.base, run=bench.clones / "gone", deadlines=DEADLINES
        )
    assert raised.value.error_code == "state_unwritable"
