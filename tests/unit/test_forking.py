"""Children of a sandbox: all the room or none, each on record, and the parent runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fake_host import OWNER, wanted
from vmpool.host import CreateRequest, ForkRequest
from vmpool.model import Code, Exited, Output, Seed
from vmpool.sandbox import Sandbox

if TYPE_CHECKING:
    from vmpool.errors import VmpoolError
    from vmpool.host import Host


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
