"""What changes a sandbox's machine, cut off at every step: it is as before, or as after."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from tests import stepping
from tests.fake_host import OWNER, add_template, opened, until, wanted
from tests.fakes import FakeEngine
from vmpool.errors import DiskFullError, VmpoolError
from vmpool.host import ForkRequest
from vmpool.lifecycle import EndReason, SandboxState
from vmpool.model import Command, Exited
from vmpool.policy import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from vmpool.host import Host
    from vmpool.household import Holding
    from vmpool.sandbox import Sandbox

Work = Callable[["Host", "Holding"], Coroutine[Any, Any, Any]]

TURNS: dict[str, Work] = {
    "pause": lambda host, it: host._pausing.pause(it),
    "resume": lambda host, it: host._pausing.resume(it, None),
    "keep": lambda host, it: host._branching.keep(it, None),
    "roll back": lambda host, it: host._branching.roll_back(
        it, host.find_checkpoint("first", owner=OWNER)
    ),
    "fork": lambda host, it: host._forking.fork(it, ForkRequest(count=2, timeout=600.0)),
}
FULL = DiskFullError("no space, as the test wants it")


async def answers(sandbox: Sandbox) -> None:
    """Return when a sandbox has run something."""
    async with sandbox.execute(Command(argv=("true",))) as execution:
        assert [event async for event in execution][-1] == Exited(exit_code=0)


async def prepared(host: Host, turn: str) -> Holding:
    """Return a sandbox that can take a turn."""
    made = await host.create(wanted(), owner=OWNER)
    if turn == "roll back" and not await host.checkpoints(owner=OWNER, sandbox=None):
        await host.checkpoint(made.id, owner=OWNER, name="first")
    if turn == "resume":
        await host.pause(made.id, owner=OWNER)
    return await host._household.find(made.id, owner=OWNER)


def directories(host: Host, *names: str) -> set[str]:
    """Return what there is in a directory."""
    return {path.name for path in host.settings.state.joinpath(*names).iterdir()}


async def consistent(host: Host) -> None:
    """Fail unless machines, files, rows and places are those of the sandboxes that there are."""
    sandboxes = host.sandboxes(owner=OWNER)
    running = [each for each in sandboxes if each.has_machine]
    assert {each.state for each in sandboxes} <= {SandboxState.RUNNING, SandboxState.PAUSED}
    await until(lambda: host.catalogue.status("python").census.alive == len(running))
    assert directories(host, "run", "clones") == {each.clone.id for each in running}
    rows = {row.id: row for row in await host.store.open_sandboxes()}
    assert rows.keys() == {each.id for each in sandboxes}
    assert all(rows[each.id].state is each.state for each in sandboxes)
    assert all(rows[each.id].clone_id == each.clone.id for each in running)
    kept = {row.id for row in await host.store.checkpoints.all()}
    assert directories(host, "checkpoints") == kept == host._vault._known.keys()
    assert not host._vault._leases
    assert not +host._vault._coming
    for each in running:
        await answers(each)


async def gone(host: Host, *, but: Sandbox | None = None) -> None:
    """End all sandboxes but one."""
    for each in host.sandboxes(owner=OWNER):
        if each is not but:
            await host.kill(each.id, owner=OWNER)


@pytest.fixture
async def roomy(
    state: Path, engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Host]:
    """A host whose pool has room for a family and keeps no spares."""
    async with opened(state, engine) as host:
        await add_template(host, limits=Limits(ready=0, total=8))
        yield host


async def stepped(
    host: Host, it: Holding, turn: str, each: Callable[[stepping.Place], object]
) -> Any:
    """Take a turn, and be told of every step of it, and of births in it, before it is taken."""
    birth = type(host._forking)._birth

    def stepwise(*given: Any) -> Any:
        return stepping._stepped(birth(host._forking, *given), each)

    host._forking._birth = stepwise  # type: ignore[assignment,method-assign]
    return await host._household.finish(it, lambda: stepping._stepped(TURNS[turn](host, it), each))


async def steps(host: Host, turn: str) -> list[stepping.Place]:
    """Return the places that a turn comes by."""
    it = await prepared(host, turn)
    found: dict[stepping.Place, None] = {}
    await stepped(host, it, turn, found.setdefault)
    await gone(host)
    assert len(found) > 3, found
    return list(found)


def at(place: stepping.Place, act: Callable[[], object]) -> Callable[[stepping.Place], None]:
    """Return what acts at a place."""

    def each(where: stepping.Place) -> None:
        if where == place:
            act()

    return each


async def outcome(work: Coroutine[Any, Any, Any]) -> BaseException | None:
    """Return what a turn raised."""
    try:
        await work
    except (VmpoolError, asyncio.CancelledError) as err:
        return err
    return None


@pytest.mark.parametrize("turn", TURNS)
async def test_a_turn_cut_off_at_any_step_leaves_what_was_or_what_was_to_be(
    roomy: Host, turn: str
) -> None:
    it = await prepared(roomy, turn)
    state = it.sandbox.state

    def cut() -> None:
        if it.operation is not None:
            it.operation.cancel()

    for place in await steps(roomy, turn):
        if it.sandbox.state is not state or it.ending is not None:
            await gone(roomy)
            it = await prepared(roomy, turn)
        await outcome(stepped(roomy, it, turn, at(place, cut)))
        await consistent(roomy)
        await gone(roomy, but=it.sandbox)


@pytest.mark.parametrize("turn", TURNS)
async def test_a_sandbox_killed_at_any_step_of_a_turn_is_gone_with_all_of_it(
    roomy: Host, turn: str
) -> None:
    for place in await steps(roomy, turn):
        it = await prepared(roomy, turn)
        kill = partial(roomy._household.begin_end, it, EndReason.KILLED)
        error = await outcome(stepped(roomy, it, turn, at(place, kill)))
        assert error is None or "has ended: killed" in str(error), place
        assert it.ending is not None
        await it.ending
        assert it.sandbox not in roomy.sandboxes(owner=OWNER)
        assert (await roomy.store.sandbox(it.sandbox.id)).end_reason is EndReason.KILLED
        await consistent(roomy)
        await gone(roomy)
