"""Both Python clients pause, keep, roll back and fork: one suite, with asyncio and without."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import pytest

import vmpool
from tests.api.conftest import IMAGE
from tests.blocking_twin import Twin
from tests.standing import stand
from vmpool.catalogue import TemplateRequest
from vmpool.errors import ConflictError, GuestError, InvalidRequestError, NotFoundError
from vmpool.model import MIB
from vmpool.policy import Limits

if TYPE_CHECKING:
    from tests.api.conftest import Server

ECHO = ["echo", "here"]


@pytest.fixture(params=["asynchronous", "blocking"])
async def client(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Any]:
    """A client of either kind."""
    kind: Any = vmpool.AsyncClient
    if request.param == "blocking":
        kind = lambda *words, **options: Twin(vmpool.Client(*words, **options))  # noqa: E731
    async with kind(server.url, token=server.token) as connected:
        yield connected


async def test_a_paused_sandbox_goes_on_as_itself(client: Any) -> None:
    async with client.sandbox(on_expiry="pause", idle_timeout=60) as held:
        assert (held.created.on_expiry, held.created.idle_timeout) == ("pause", 60)
        assert (await held.pause()).state == "paused"
        assert [info.state async for info in client.sandboxes()] == ["paused"]
        with pytest.raises(ConflictError) as refused:
            await held.run(argv=ECHO)
        assert refused.value.error_code == "sandbox_paused"
        resumed = await held.resume(timeout=100)
        assert resumed.identity.machine_id == held.created.identity.machine_id
        assert (await held.run(argv=ECHO)).stdout == "here\n"


async def test_a_disk_is_kept_alone_and_booted_on(
    client: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand(monkeypatch)
    request = TemplateRequest(
        name="disked", image=IMAGE, disk_bytes=8 * MIB, limits=Limits(ready=0)
    )
    await server.host.catalogue.add(request, progress=lambda _: None)
    async with client.sandbox(template="disked", on_expiry="pause_disk") as held:
        assert held.created.on_expiry == "pause_disk"
        assert (await held.pause(keep="disk")).state == "paused"
        resumed = await held.resume()
        assert resumed.identity.machine_id == held.created.identity.machine_id
        kept = await held.checkpoint("disk", keep="disk")
        assert (kept.name, kept.keep, kept.dirty_bytes) == ("disk", "disk", 0)
        assert [each.keep for each in await client.checkpoints.list()] == ["disk"]
        async with client.sandbox(checkpoint=kept) as booted:
            assert booted.created.identity.machine_id != resumed.identity.machine_id
            assert (await booted.run(argv=ECHO)).stdout == "here\n"
        await held.pause()
        await held.resume(timeout=100, keep="disk")
        assert (await held.run(argv=ECHO)).stdout == "here\n"
    async with client.sandbox() as diskless:
        with pytest.raises(InvalidRequestError) as refused:
            await diskless.pause(keep="disk")
        assert refused.value.error_code == "disk_missing"
        with pytest.raises(InvalidRequestError) as refused:
            await diskless.checkpoint(keep="disk")
        assert refused.value.error_code == "disk_missing"
        assert (await diskless.checkpoint()).keep == "memory"
        assert (await diskless.run(argv=ECHO)).stdout == "here\n"


async def test_a_paused_sandbox_is_killed_when_its_block_ends(client: Any, server: Server) -> None:
    async with client.sandbox() as held:
        await held.pause()
    assert server.host.sandboxes(owner=server.owner) == []


async def test_a_checkpoint_is_gone_back_to_made_into_others_and_removed(client: Any) -> None:
    async with client.sandbox() as held:
        kept = await held.checkpoint("before")
        nameless = await held.checkpoint()
        assert (kept.name, nameless.name, kept.sandbox) == ("before", None, held.id)
        assert await client.checkpoints.list() == (nameless, kept)
        assert await client.checkpoints.list(held.id) == (nameless, kept)
        assert await client.checkpoints.list("another") == ()
        assert await client.checkpoints.look("before") == kept
        for reference in (kept, kept.id, "before"):
            assert (await held.rollback(reference)).id == held.id
        with pytest.raises(ConflictError) as refused:
            await held.checkpoint("before")
        assert refused.value.error_code == "checkpoint_exists"
        moved = await held.checkpoint("before", if_taken="move")
        assert (await client.checkpoints.look("before")).id == moved.id
        assert (await client.checkpoints.look(kept)).name is None
        await client.checkpoints.remove(kept)
        kept = moved
    for reference in (kept, "before"):
        async with client.sandbox(checkpoint=reference, rng={"seed": 7}) as made:
            assert made.created.checkpoint == kept.id
    await client.checkpoints.remove(nameless)
    await client.checkpoints.remove("before")
    with pytest.raises(NotFoundError) as gone:
        await client.checkpoints.remove(kept)
    assert gone.value.error_code == "checkpoint_not_found"


async def test_a_template_is_made_of_a_checkpoint(client: Any) -> None:
    async with client.sandbox(env={"A": "1"}) as held:
        kept = await held.checkpoint("before")
        template = await client.create_template("made", checkpoint=kept, limits={"ready": 0})
        assert (template.name, template.state) == ("made", "ready")
    async with client.sandbox(template="made") as made:
        assert (await made.run(argv=["sh", "-c", "echo $A"])).stdout == "1\n"
    await client.remove_template("made")


async def test_children_are_sandboxes_to_work_with(client: Any) -> None:
    async with client.sandbox(env={"A": "parent"}) as held:
        children = await held.fork(3, env={"B": "child"}, clock="frozen-at-snapshot")
        for child in children:
            assert child.created.parent == held.id
            told = await child.run(argv=["bash", "-c", "echo $A $B"])
            assert told.stdout == "parent child\n"
            await child.kill()
        assert len({child.id for child in children}) == 3
        (only,) = await held.fork()
        await only.kill()
        assert (await held.run(argv=ECHO)).stdout == "here\n"


async def test_a_fork_is_all_or_none_unless_one_can_do_with_fewer(
    client: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = server.host.fork

    async def partly(*words: Any, **options: Any) -> list[Any]:
        made = await whole(*words, **options)
        await server.host.kill(made[1].id, owner=server.owner)
        return [made[0], GuestError("it never woke", code="guest_lost"), made[2]]

    monkeypatch.setattr(server.host, "fork", partly)
    async with client.sandbox() as held:
        with pytest.raises(GuestError, match="it never woke") as failed:
            await held.fork(3)
        assert failed.value.error_code == "guest_lost"
        assert failed.value.__notes__ == ["2 of 3 children were made, and killed again"]
        assert [info.id async for info in client.sandboxes()] == [held.id]
        first, second, third = await held.try_fork(3)
        assert isinstance(second, GuestError)
        for child in (first, third):
            assert (await child.run(argv=ECHO)).stdout == "here\n"
            await child.kill()
