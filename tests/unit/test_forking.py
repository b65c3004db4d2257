"""Children of a sandbox: all the room or none, each on record, and the parent runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.fake_host import OWNER, wanted
from vmpool.host import CreateRequest, ForkRequest
from vmpool.sandbox import Sandbox

if TYPE_CHECKING:
    from vmpool.host import Host


async def test_children_are_sandboxes_of_their_own(host: Host) -> None:
    parent = await host.create(wanted(env={"A": "1", "B": "1"}), owner=OWNER)
    request = ForkRequest(count=3, timeout=60.0, env={"B": "2"}, metadata={"k": "v"})
    children = await host.fork(parent.id, request, owner=OWNER)
    born = [child for child in children if isinstance(child, Sandbox)]
    assert len(born) == 3
    assert len({child.receipt.machine_id for child in [parent, *born]}) == 4
    for child in born:
        row = await host.store.sandbox(child.id)
        assert (row.parent_id, row.env, row.metadata) == (
            parent.id,
            {"A": "1", "B": "2"},
            {"k": "v"},
        )
    for sandbox in [parent, *born]:
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
