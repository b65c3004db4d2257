"""Turns: what changes a sandbox's machine, and what must hold after each, however it ended."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from tests.fake_host import OWNER, until, wanted
from vmpool.host import ForkRequest
from vmpool.lifecycle import Keep, SandboxState
from vmpool.model import Command, Exited

if TYPE_CHECKING:
    from vmpool.holding import Holding
    from vmpool.host import Host
    from vmpool.sandbox import Sandbox

Work = Callable[["Host", "Holding"], Coroutine[Any, Any, Any]]

TURNS: dict[str, Work] = {
    "pause": lambda host, it: host._pausing.pause(it, Keep.MEMORY),
    "resume": lambda host, it: host._pausing.resume(it, None, Keep.MEMORY),
    "keep": lambda host, it: host._branching.keep(it, None),
    "roll back": lambda host, it: host._branching.roll_back(
        it, host.find_checkpoint("first", owner=OWNER)
    ),
    "fork": lambda host, it: host._forking.fork(it, ForkRequest(count=2, timeout=600.0)),
}


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
    assert not host.quotas._coming
    for each in running:
        await answers(each)


async def gone(host: Host, *, but: Sandbox | None = None) -> None:
    """End all sandboxes but one."""
    for each in host.sandboxes(owner=OWNER):
        if each is not but:
            await host.kill(each.id, owner=OWNER)
