"""Children of a sandbox: all the room or none, each on record, and the parent runs on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tests.fake_host import OWNER, add_template, opened, wanted
from tests.fakes import FakeEngine, FakeMachine, FakeShell, Faults
from vmpool.errors import EngineError
from vmpool.host import CreateRequest, ForkRequest
from vmpool.lanes import Lanes
from vmpool.model import Attachment, Code, Exited, Output, Seed
from vmpool.policy import Limits
from vmpool.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    import pytest

    from vmpool.engine import Machine
    from vmpool.errors import VmpoolError
    from vmpool.host import Host
    from vmpool.snapshot import Snapshot


def born(children: list[Sandbox | VmpoolError]) -> list[Sandbox]:
    """Return the children that there are."""
    return [child for child in children if isinstance(child, Sandbox)]


async def draw(sandbox: Sandbox) -> bytes:
    """Return what Python's generator draws first in a sandbox."""
    source = "import random; print(random.getrandbits(64))"
    async with sandbox.execute(Code(source=source)) as execution:
        events = [event async for event in execution]
    assert events[-1] == Exited(exit_code=0)
    return b"".join(event.data for event in events if isinstance(event, Output))


async def test_children_are_sandboxes_of_their_own(host: Host) -> None:
    parent = await host.create(wanted(env={"A": "1", "B": "1"}), owner=OWNER)
    request = ForkRequest(count=3, timeout=60.0, env={"B": "2"}, metadata={"k": "v"})
    children = born(await host.fork(parent.id, request, owner=OWNER))
    assert len(children) == 3
    assert len({child.receipt.machine_id for child in [parent, *children]}) == 4
    for child in children:
        row = await host.store.sandbox(child.id)
        assert (row.parent_id, row.env, row.metadata) == (
            parent.id,
            {"A": "1", "B": "2"},
            {"k": "v"},
        )
    for sandbox in [parent, *children]:
        await host.kill(sandbox.id, owner=OWNER)


async def test_a_checkpoint_is_gone_back_to_and_grown_from(host: Host) -> None:
    made = await host.create(wanted(), owner=OWNER)
    kept = await host.checkpoint(made.id, owner=OWNER, name="first")
    assert await host.checkpoints(owner=OWNER, sandbox=None) == [kept]
    before = made.clone
    await host.rollback(made.id, owner=OWNER, checkpoint="first")
    assert made.clone is not before
    other = await host.create(
        CreateRequest(checkpoint="first", timeout=60.0, wait=60.0), owner=OWNER
    )
    assert other.claim.parent_checkpoint_id == kept.id
    await host.remove_checkpoint("first", owner=OWNER)
    assert not list((host.settings.state / "checkpoints").iterdir())
    for sandbox in (made, other):
        await host.kill(sandbox.id, owner=OWNER)


async def test_who_asks_for_a_seed_gets_it_from_the_pool_and_in_children(host: Host) -> None:
    drawn = []
    for _ in range(2):
        made = await host.create(wanted(rng=Seed(7)), owner=OWNER)
        drawn.append(await draw(made))
        await host.kill(made.id, owner=OWNER)
    assert drawn[0] == drawn[1]
    parent = await host.create(wanted(), owner=OWNER)
    request = ForkRequest(count=2, timeout=60.0, rng=Seed(7))
    twins = [await draw(each) for each in born(await host.fork(parent.id, request, owner=OWNER))]
    assert twins == [drawn[0]] * 2
    assert await draw(parent) != drawn[0]


class Counting(FakeEngine):
    """An engine that knows how many of its shells there are, and how many load at one time.

    Attributes:
        pairs: Two loads go on together, when there is one.
        events: What was done, in order: `shell` was made, a parent `paused`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loading = self.most = 0
        self.pairs: asyncio.Barrier | None = None
        self.events: list[str] = []

    async def prepare(self, template: Snapshot, at: Attachment) -> FakeShell:
        shell = await super().prepare(template, at)
        self.events.append("shell")
        load = shell.load

        async def counted(snapshot: Snapshot) -> FakeMachine:
            self.loading += 1
            self.most = max(self.most, self.loading)
            if self.pairs is not None:
                await self.pairs.wait()
            self.loading -= 1
            return await load(snapshot)

        shell.load = counted  # type: ignore[method-assign]
        return shell


async def test_children_wake_some_at_a_time(state: Path) -> None:
    engine = Counting()
    async with opened(state, engine) as host:
        await add_template(host, limits=Limits(ready=0, total=8))
        host._nursery._waking = Lanes(2)
        parent = await host.create(wanted(), owner=OWNER)
        engine.pairs = asyncio.Barrier(2)
        family = await host.fork(parent.id, ForkRequest(count=6, timeout=60.0), owner=OWNER)
        assert len(born(family)) == 6
        assert engine.most == 2


async def test_no_hypervisor_starts_while_the_parent_is_held_still(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Counting()
    async with opened(state, engine) as host:
        await add_template(host, limits=Limits(ready=0, total=8))
        parent = await host.create(wanted(), owner=OWNER)
        engine.events.clear()
        monkeypatch.setattr(parent.clone.machine, "pause", _told(engine, parent.clone.machine))
        family = await host.fork(parent.id, ForkRequest(count=3, timeout=60.0), owner=OWNER)
        assert len(born(family)) == 3
        assert engine.events == ["shell", "shell", "shell", "paused"]


async def test_a_child_without_a_hypervisor_is_an_error_and_the_parent_runs_on(
    state: Path,
) -> None:
    engine = FakeEngine()
    async with opened(state, engine) as host:
        await add_template(host, limits=Limits(ready=0, total=8))
        parent = await host.create(wanted(), owner=OWNER)
        engine.faults = Faults(prepare=EngineError("no, as the test wants it"))
        family = await host.fork(parent.id, ForkRequest(count=2, timeout=60.0), owner=OWNER)
        assert [type(each) for each in family] == [EngineError, EngineError]
        assert await draw(parent)


def _told(engine: Counting, machine: Machine) -> Callable[[], Awaitable[None]]:
    """Return a machine's `pause` that is told of."""
    pause = machine.pause

    async def told() -> None:
        engine.events.append("paused")
        await pause()

    return told
