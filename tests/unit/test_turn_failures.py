"""Turns that fail: whatever refuses, breaks or dies, a sandbox is as it was, or said to be gone."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.fake_host import OWNER, add_template, opened, until, wanted
from tests.fakes import FakeEngine, FakeShell, Faults
from tests.turns import TURNS, consistent, gone, prepared
from vmpool.errors import (
    CallerError,
    ConflictError,
    DiskFullError,
    EngineError,
    InfrastructureError,
    NotFoundError,
    PoolBusyError,
    SnapshotError,
    StoreError,
    VmpoolError,
)
from vmpool.host import ForkRequest
from vmpool.lifecycle import EndReason, SandboxState
from vmpool.model import Command
from vmpool.policy import Limits
from vmpool.sandbox import Sandbox
from vmpool.scope import Role

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

    from vmpool.holding import Holding
    from vmpool.host import Host
    from vmpool.model import Attachment
    from vmpool.snapshot import Snapshot

TWO = ForkRequest(count=2, timeout=600.0)
FULL = DiskFullError("no space, as the test wants it")
BROKEN = EngineError("broken, as the test wants it")
DAMAGED = SnapshotError("damaged, as the test wants it", code="snapshot_damaged")
WORDS = "as the test wants it"
COMMITS = {
    "pause": "INSERT ON checkpoints",
    "resume": "UPDATE ON sandboxes",
    "keep": "INSERT ON checkpoints",
    "roll back": "UPDATE ON sandboxes",
    "fork": "INSERT ON sandboxes",
}
FAULTS = {
    "pause": (Faults(pause=BROKEN), Faults(take=BROKEN), Faults(write=FULL)),
    "resume": (Faults(prepare=BROKEN), Faults(load=DAMAGED), Faults(resume=BROKEN)),
    "keep": (Faults(pause=BROKEN), Faults(take=BROKEN), Faults(write=FULL)),
    "roll back": (Faults(prepare=BROKEN), Faults(load=DAMAGED), Faults(resume=BROKEN)),
    "fork": (Faults(prepare=BROKEN), Faults(load=DAMAGED), Faults(resume=BROKEN)),
}


@contextmanager
def refusing(state: Path, what: str) -> Iterator[None]:
    """Have the journal refuse something for a while."""
    with closing(sqlite3.connect(state / "vmpool.db")) as database:
        database.execute(
            f"CREATE TRIGGER full BEFORE {what} BEGIN SELECT RAISE(ABORT, '{WORDS}'); END"
        )
        yield
        database.execute("DROP TRIGGER full")


async def failed(host: Host, turn: str, it: Holding) -> None:
    """Take a turn that fails in every part, with the words of the test."""
    errors: list[object] = []
    try:
        errors += await host._household.finish(it, lambda: TURNS[turn](host, it))
    except VmpoolError as err:
        errors.append(err)
    assert errors
    for error in errors:
        assert isinstance(error, VmpoolError)
        assert WORDS in str(error)


@pytest.mark.parametrize("turn", TURNS)
async def test_a_turn_that_the_journal_does_not_take_comes_to_nothing(
    roomy: Host, state: Path, turn: str
) -> None:
    it = await prepared(roomy, turn)
    before = it.sandbox.state
    with refusing(state, COMMITS[turn]):
        await failed(roomy, turn, it)
    assert it.sandbox.state is before
    await consistent(roomy)
    await roomy._household.finish(it, lambda: TURNS[turn](roomy, it))
    await consistent(roomy)


@pytest.mark.parametrize("turn", TURNS)
async def test_a_turn_that_the_engine_does_not_take_comes_to_nothing(
    roomy: Host, engine: FakeEngine, turn: str
) -> None:
    it = await prepared(roomy, turn)
    before, good = it.sandbox.state, engine.faults
    for faults in FAULTS[turn]:
        engine.faults = faults
        if turn in {"pause", "keep"}:
            it.sandbox.clone.machine._faults = faults  # type: ignore[attr-defined]
        await failed(roomy, turn, it)
        assert it.sandbox.state is before
        engine.faults = good
        if turn in {"pause", "keep"}:
            it.sandbox.clone.machine._faults = good  # type: ignore[attr-defined]
        await consistent(roomy)


async def test_a_sandbox_that_cannot_run_on_after_a_pause_that_failed_is_dead(
    roomy: Host, state: Path
) -> None:
    it = await prepared(roomy, "pause")
    it.sandbox.clone.machine._faults = Faults(resume=BROKEN)  # type: ignore[attr-defined]
    with refusing(state, COMMITS["pause"]), pytest.raises(EngineError, match=WORDS):
        await roomy.pause(it.sandbox.id, owner=OWNER)
    assert it.ending is not None
    await it.ending
    assert it.sandbox.end_reason is EndReason.CRASHED
    await consistent(roomy)


@pytest.mark.parametrize("turn", ["pause", "keep", "fork"])
async def test_a_guest_that_dies_as_it_is_saved_is_told_of_as_dead(roomy: Host, turn: str) -> None:
    it = await prepared(roomy, turn)
    machine = it.sandbox.clone.machine
    pause = machine.pause

    async def die() -> None:
        os.kill(machine.pid, signal.SIGKILL)
        await machine.wait()
        await pause()

    machine.pause = die  # type: ignore[method-assign]
    with pytest.raises(InfrastructureError):
        await roomy._household.finish(it, lambda: TURNS[turn](roomy, it))
    await until(lambda: it.sandbox not in roomy.sandboxes(owner=OWNER))
    assert (await roomy.store.sandbox(it.sandbox.id)).end_reason is EndReason.CRASHED
    await consistent(roomy)


class Uneven(FakeEngine):
    """An engine whose every other shell loads nothing, once it is told so."""

    def __init__(self) -> None:
        super().__init__()
        self.uneven = False
        self.shells = 0

    async def prepare(self, template: Snapshot, at: Attachment) -> FakeShell:
        shell = await super().prepare(template, at)
        self.shells += 1
        if self.uneven and self.shells % 2:
            shell._faults = Faults(load=DAMAGED)
        return shell


async def test_a_child_that_fails_is_an_error_among_its_siblings(
    state: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    engine = Uneven()
    async with opened(state, engine) as host:
        await add_template(host, limits=Limits(ready=0, total=8))
        parent = await host.create(wanted(), owner=OWNER)
        engine.uneven = True
        request = ForkRequest(count=4, timeout=600.0)
        children = await host.fork(parent.id, request, owner=OWNER)
        assert sorted(isinstance(child, Sandbox) for child in children) == [False] * 2 + [True] * 2
        assert all(isinstance(child, Sandbox) or WORDS in str(child) for child in children)
        await consistent(host)


async def test_a_fork_has_room_for_all_its_children_or_for_none(roomy: Host) -> None:
    parent = await roomy.create(wanted(), owner=OWNER)
    with pytest.raises(PoolBusyError) as raised:
        await roomy.fork(parent.id, ForkRequest(count=8, timeout=600.0), owner=OWNER)
    assert raised.value.error_code == "pool_full"
    await consistent(roomy)
    for count in (0, 65):
        with pytest.raises(CallerError) as refused:
            await roomy.fork(parent.id, ForkRequest(count=count, timeout=600.0), owner=OWNER)
        assert refused.value.error_code == "fork_too_wide"


async def test_two_forks_at_once_have_children_each(roomy: Host) -> None:
    parent = await roomy.create(wanted(), owner=OWNER)
    keeping = asyncio.ensure_future(roomy.checkpoint(parent.id, owner=OWNER, name=None))
    families = await asyncio.gather(
        *(roomy.fork(parent.id, TWO, owner=OWNER) for _ in range(2)),
    )
    await keeping
    children = [child for family in families for child in family]
    assert all(isinstance(child, Sandbox) for child in children)
    assert len(roomy.sandboxes(owner=OWNER)) == 5
    await consistent(roomy)


async def test_a_fork_whose_caller_leaves_has_no_children(roomy: Host) -> None:
    parent = await roomy.create(wanted(), owner=OWNER)
    for steps in (0, 3, 30, 300):
        forking = asyncio.create_task(roomy.fork(parent.id, TWO, owner=OWNER))
        for _ in range(steps):
            await asyncio.sleep(0)
        forking.cancel()
        await asyncio.wait({forking})
        assert forking.cancelled() or len(forking.result()) == 2
        await gone(roomy, but=parent)
        await consistent(roomy)
    it = await roomy._household.find(parent.id, owner=OWNER)
    forking = asyncio.create_task(roomy.fork(parent.id, TWO, owner=OWNER))
    await until(lambda: it.operation is not None)
    assert it.operation is not None
    # In the very step in which the family is whole.
    it.operation.add_done_callback(lambda _: forking.cancel())
    await asyncio.wait({forking})
    assert forking.cancelled()
    assert roomy.sandboxes(owner=OWNER) == [parent]
    await consistent(roomy)


async def followed(
    sandbox: Sandbox, turn: Coroutine[None, None, Sandbox], taking: list[asyncio.Future[Sandbox]]
) -> None:
    """Run something without end and follow it, while a turn is taken."""
    async with sandbox.execute(Command(argv=("sleep", "600"))) as execution:
        taking.append(asyncio.ensure_future(turn))
        async for _ in execution:
            pass


async def test_what_runs_is_told_why_its_machine_went(roomy: Host) -> None:
    made = await roomy.create(wanted(), owner=OWNER)
    await roomy.checkpoint(made.id, owner=OWNER, name="first")
    rollback = roomy.rollback(made.id, owner=OWNER, checkpoint="first")
    for turn, code in (
        (rollback, "sandbox_rolled_back"),
        (roomy.pause(made.id, owner=OWNER), "sandbox_paused"),
    ):
        taking: list[asyncio.Future[Sandbox]] = []
        with pytest.raises(ConflictError) as raised:
            await followed(made, turn, taking)
        assert raised.value.error_code == code
        await taking[0]


@pytest.mark.parametrize("turn", ["resume", "roll back", "fork"])
async def test_killing_waits_for_nothing_that_is_under_way(
    roomy: Host, engine: FakeEngine, turn: str
) -> None:
    it = await prepared(roomy, turn)
    engine.faults = Faults(load_delay=600.0)
    taking = asyncio.ensure_future(roomy._household.finish(it, lambda: TURNS[turn](roomy, it)))
    clones = roomy.settings.run / "clones"
    await until(lambda: len(list(clones.glob("*/agent"))) > it.sandbox.has_machine)
    async with asyncio.timeout(30):
        await roomy.kill(it.sandbox.id, owner=OWNER)
    with pytest.raises(NotFoundError, match="has ended: killed"):
        await taking
    engine.faults = Faults()
    await consistent(roomy)


async def test_turns_of_what_is_not_there_or_not_ones_own_are_refused(roomy: Host) -> None:
    _, alice = await roomy.store.tokens.add("alice", Role.USE.scopes)
    _, bob = await roomy.store.tokens.add("bob", Role.USE.scopes)
    made = await roomy.create(wanted(), owner=alice.id)
    kept = await roomy.checkpoint(made.id, owner=alice.id, name="first")

    async def codes(owner: str) -> set[str]:
        found = set()
        for turn in (
            roomy.pause(made.id, owner=owner),
            roomy.resume(made.id, owner=owner, timeout=None),
            roomy.checkpoint(made.id, owner=owner, name=None),
            roomy.rollback(made.id, owner=owner, checkpoint=kept.id),
            roomy.fork(made.id, TWO, owner=owner),
            roomy.awake(made.id, owner=owner),
        ):
            with pytest.raises(VmpoolError) as raised:
                await turn
            found.add(raised.value.error_code)
        return found

    assert await codes(bob.id) == {"sandbox_not_found"}
    for name in (kept.id, "first"):
        with pytest.raises(NotFoundError) as raised:
            await roomy.remove_checkpoint(name, owner=bob.id)
        assert raised.value.error_code == "checkpoint_not_found"
    await roomy.pause(made.id, owner=alice.id)
    for refused in (
        roomy.fork(made.id, TWO, owner=alice.id),
        roomy.checkpoint(made.id, owner=alice.id, name=None),
        roomy.rollback(made.id, owner=alice.id, checkpoint=kept.id),
    ):
        with pytest.raises(ConflictError) as conflict:
            await refused
        assert conflict.value.error_code == "sandbox_paused"
    killing = asyncio.create_task(roomy.kill(made.id, owner=alice.id))
    await asyncio.sleep(0)
    assert await codes(alice.id) == {"sandbox_ended"}
    await killing
    assert await codes(alice.id) == {"sandbox_ended"}
    assert made.state is SandboxState.ENDED


async def test_a_turn_outlives_a_caller_who_leaves(roomy: Host) -> None:
    made = await roomy.create(wanted(), owner=OWNER)
    pausing = asyncio.create_task(roomy.pause(made.id, owner=OWNER))
    await until(lambda: made.state is SandboxState.PAUSING)
    pausing.cancel()
    await until(lambda: made.state is SandboxState.PAUSED)
    await consistent(roomy)


def test_every_turn_is_tried_with_faults_and_without_a_journal() -> None:
    assert TURNS.keys() == FAULTS.keys() == COMMITS.keys()


async def test_a_base_that_is_gone_is_said_to_be(roomy: Host) -> None:
    made = await roomy.create(wanted(), owner=OWNER)
    await roomy.pause(made.id, owner=OWNER)
    it = await roomy._household.find(made.id, owner=OWNER)
    it.base_id = "nowhere"
    with pytest.raises(SnapshotError) as raised:
        await roomy.resume(made.id, owner=OWNER, timeout=None)
    assert raised.value.error_code == "base_missing"
    assert made.state is SandboxState.PAUSED


async def test_a_fault_of_the_journal_is_no_lie_about_children(roomy: Host, state: Path) -> None:
    parent = await roomy.create(wanted(), owner=OWNER)
    with refusing(state, "INSERT ON sandboxes"):
        children = await roomy.fork(parent.id, TWO, owner=OWNER)
    assert all(isinstance(child, StoreError) for child in children)
    assert roomy.sandboxes(owner=OWNER) == [parent]
