"""Templates: found again, made again, replaced, removed, and in nobody's way when they fail."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.api.conftest import IMAGE
from tests.fake_host import OWNER, add_template, opened, until, wanted
from tests.fakes import PROCESSOR, FakeEngine, FakeMachine, FakeShell, Faults
from vmpool.catalogue import TemplateRequest, TemplateState
from vmpool.errors import (
    CapacityError,
    ConflictError,
    EngineError,
    NotFoundError,
    StoreError,
    VmpoolError,
)
from vmpool.model import MIB, Code, Exited
from vmpool.policy import Limits
from vmpool.snapshot import DEVICE_STATE, MANIFEST, MEMORY

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    from vmpool.host import Host
    from vmpool.sandbox import Sandbox
    from vmpool.snapshot import Snapshot

MORE_MEMORY = 512 * MIB


async def runs(sandbox: Sandbox) -> bool:
    """Run a line in a sandbox."""
    async with sandbox.execute(Code(source="pass")) as execution:
        return [event async for event in execution][-1] == Exited(exit_code=0)


async def attempt(work: Coroutine[object, object, None]) -> str:
    """Return the code of what an attempt raised, empty when it worked."""
    try:
        await work
    except VmpoolError as err:
        return err.error_code
    return ""


def snapshots(state: Path) -> list[str]:
    return sorted(path.name for path in (state / "snapshots").iterdir())


def flip(path: Path, offset: int) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


async def test_a_template_is_found_again_at_the_next_start(state: Path) -> None:
    for boots in (1, 0):
        engine = FakeEngine()
        async with opened(state, engine) as host:
            if boots:
                shutil.rmtree(state / "snapshots")
                (state / "snapshots").mkdir()
                await add_template(host)
            status = await host.catalogue.settled(IMAGE)
            assert status.state is TemplateState.READY
            assert engine.boots == boots
            assert await runs(await host.create(wanted(), owner=OWNER))


@pytest.mark.parametrize(
    ("name", "offset"),
    [(MEMORY, 4000), (DEVICE_STATE, 3), (MANIFEST, 10), ("memory_bytes", 15), ("image", 12)],
)
async def test_one_flipped_byte_in_a_snapshot_is_noticed_and_the_template_made_again(
    host: Host, state: Path, name: str, offset: int
) -> None:
    (snapshot,) = (state / "snapshots").iterdir()
    await host.catalogue.close()
    if (snapshot / name).exists():
        flip(snapshot / name, offset)
    else:  # a member of the manifest, which is still one with it
        text = (snapshot / MANIFEST).read_text()
        at = text.index(f'"{name}"') + offset
        flip(snapshot / MANIFEST, at + next(i for i, c in enumerate(text[at:]) if c in "02468ace"))
    said: list[str] = []
    engine = FakeEngine()
    other = shutil.copytree(state, state.with_name(f"{state.name}-d"))
    async with opened(other, engine, progress=said.append) as again:
        status = await again.catalogue.settled(IMAGE)
        assert status.state is TemplateState.READY
        assert any("making it again" in word for word in said), said
        assert engine.boots == 1
        assert await runs(await again.create(wanted(), owner=OWNER))


async def test_a_snapshot_of_another_qemu_is_replaced_by_one_of_this(
    host: Host, state: Path
) -> None:
    (old,) = snapshots(state)
    await host.catalogue.close()
    other = shutil.copytree(state, state.with_name(f"{state.name}-v"))
    engine = FakeEngine(version="11.0.0")
    async with opened(other, engine) as again:
        status = await again.catalogue.settled(IMAGE)
        assert (status.state, status.spec.qemu_version) == (TemplateState.READY, "11.0.0")
        assert engine.boots == 1
        (new,) = snapshots(other)  # the other is nobody's any more
        assert status.snapshot == new != old
        (row,) = await again.store.templates()
        assert row.snapshot_id == new


async def test_a_snapshot_of_a_machine_that_is_made_otherwise_by_now_is_replaced(
    host: Host, state: Path
) -> None:
    (old,) = snapshots(state)
    await host.catalogue.close()
    other = shutil.copytree(state, state.with_name(f"{state.name}-o"))
    engine = FakeEngine()
    engine.make = "second"
    async with opened(other, engine) as again:
        assert (await again.catalogue.settled(IMAGE)).state is TemplateState.READY
        assert engine.boots == 1
        (new,) = snapshots(other)
        assert new != old


async def test_a_snapshot_of_a_better_processor_is_refused_by_name_and_made_again(
    host: Host, state: Path
) -> None:
    await host.catalogue.close()
    other = shutil.copytree(state, state.with_name(f"{state.name}-p"))
    engine = FakeEngine()
    engine.offered = replace(PROCESSOR, features=PROCESSOR.features - {"avx2"})
    said: list[str] = []
    async with opened(other, engine, progress=said.append) as again:
        assert (await again.catalogue.settled(IMAGE)).state is TemplateState.READY
        assert engine.boots == 1
        assert any("lack here: avx2; making it again" in word for word in said), said
        assert not list((other / "run/clones").glob("*/qmp"))


async def test_templates_have_the_cpu_model_of_the_settings(host: Host, state: Path) -> None:
    await host.catalogue.close()
    other = shutil.copytree(state, state.with_name(f"{state.name}-m"))
    engine = FakeEngine()
    async with opened(other, engine, cpu_model="EPYC-v4") as again:
        status = await again.catalogue.settled(IMAGE)
        assert (status.state, status.spec.cpu_model) == (TemplateState.READY, "EPYC-v4")
        assert engine.boots == 1


async def test_an_image_that_is_damaged_makes_its_template_fail(host: Host, state: Path) -> None:
    await host.catalogue.close()
    other = shutil.copytree(state, state.with_name(f"{state.name}-i"))
    (root,) = other.glob("images/*/root.erofs")
    flip(root, 5)
    async with opened(other, FakeEngine()) as again:
        status = await again.catalogue.settled(IMAGE)
        assert status.state is TemplateState.FAILED
        assert "root.erofs" in status.error


async def test_templates_that_fail_at_start_say_why_and_others_serve(
    host: Host, state: Path
) -> None:
    await add_template(host, "larger", memory_bytes=MORE_MEMORY)
    await host.catalogue.close()
    other = shutil.copytree(state, state.with_name(f"{state.name}-f"))
    engine = FakeEngine(Faults(boot=EngineError("no such machine")))
    shutil.rmtree(other / "snapshots" / str(host.catalogue.status("larger").snapshot))
    said: list[str] = []
    async with opened(other, engine, progress=said.append) as again:
        failed = await again.catalogue.settled("larger")
        assert (failed.state, failed.error) == (TemplateState.FAILED, "no such machine")
        assert any("no such machine" in word for word in said)
        with pytest.raises(ConflictError, match="no such machine") as raised:
            await again.create(wanted(template="larger"), owner=OWNER)
        assert raised.value.error_code == "template_not_ready"
        await again.catalogue.settled(IMAGE)
        assert await runs(await again.create(wanted(), owner=OWNER))
        engine.faults = Faults()
        await add_template(again, "larger", memory_bytes=MORE_MEMORY)
        assert again.catalogue.status("larger").state is TemplateState.READY


async def test_a_template_whose_image_is_gone_is_shown_as_failed_and_can_be_removed(
    host: Host, state: Path
) -> None:
    await host.catalogue.close()
    other = shutil.copytree(state, state.with_name(f"{state.name}-g"))
    shutil.rmtree(other / "images" / host.catalogue.status(IMAGE).image)
    async with opened(other, FakeEngine()) as again:
        (status,) = again.catalogue.statuses
        assert (status.name, status.image_name) == (IMAGE, IMAGE)
        assert status.state is TemplateState.FAILED
        assert status.spec.memory_bytes == host.catalogue.status(IMAGE).spec.memory_bytes
        assert "no image" in status.error
        await again.catalogue.remove(IMAGE)
        assert not again.catalogue.statuses


async def test_of_two_adds_of_one_name_at_once_one_is_busy(host: Host) -> None:
    outcomes = await asyncio.gather(
        *(attempt(add_template(host, "new", memory_bytes=MORE_MEMORY)) for _ in range(2))
    )
    assert sorted(outcomes) == ["", "template_busy"]
    assert host.catalogue.status("new").state is TemplateState.READY


async def test_two_templates_of_one_image_share_a_snapshot_that_is_made_once(
    host: Host, engine: FakeEngine, state: Path
) -> None:
    before = engine.boots
    await asyncio.gather(*(add_template(host, name, memory_bytes=MORE_MEMORY) for name in "ab"))
    assert engine.boots == before + 1
    assert len(snapshots(state)) == 2
    await host.catalogue.remove("a")
    assert len(snapshots(state)) == 2
    host.catalogue.pool("b")
    await host.catalogue.remove("b")
    assert len(snapshots(state)) == 1


async def test_a_snapshot_is_not_removed_under_one_who_has_just_found_it(host: Host) -> None:
    adding = asyncio.create_task(attempt(add_template(host, "second")))
    await asyncio.sleep(0)
    assert "second" in {status.name for status in host.catalogue.statuses}
    await asyncio.gather(host.catalogue.remove(IMAGE), adding)
    assert adding.result() == ""
    assert await runs(await host.create(wanted(template="second"), owner=OWNER))


async def test_a_template_that_is_made_is_shown_and_not_yet_to_be_had(host: Host) -> None:
    adding = asyncio.create_task(add_template(host, "new", memory_bytes=MORE_MEMORY))
    await asyncio.sleep(0)
    assert host.catalogue.status("new").state is TemplateState.BUILDING
    with pytest.raises(CapacityError) as early:
        host.catalogue.pool("new")
    assert early.value.error_code == "template_being_made"
    with pytest.raises(ConflictError) as raised:
        await host.catalogue.remove("new")
    assert raised.value.error_code == "template_busy"
    await adding


async def test_a_sandbox_outlives_its_template_replaced_and_removed(host: Host) -> None:
    old = await host.create(wanted(), owner=OWNER)
    await add_template(host, memory_bytes=MORE_MEMORY)
    assert await runs(old)
    new = await host.create(wanted(), owner=OWNER)
    await host.catalogue.remove(IMAGE)
    assert await runs(old)
    assert await runs(new)
    with pytest.raises(NotFoundError):
        await host.create(wanted(), owner=OWNER)
    await host.kill(old.id, owner=OWNER)
    await host.kill(new.id, owner=OWNER)


async def test_who_waits_for_a_template_that_is_replaced_gets_a_clone_of_the_new_one(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_template(host, "other")
    load, loading = FakeShell.load, 0

    async def stuck(shell: FakeShell, snapshot: Snapshot) -> FakeMachine:
        nonlocal loading
        loading += 1
        if loading <= 2:
            try:
                await asyncio.Event().wait()
            finally:
                await shell.kill()
        return await load(shell, snapshot)

    monkeypatch.setattr(FakeShell, "load", stuck)
    waiting = [
        asyncio.create_task(host.create(wanted(template=name), owner=OWNER))
        for name in (IMAGE, "other")
    ]
    await until(lambda: loading == 2)
    await add_template(host, memory_bytes=MORE_MEMORY)
    made = await waiting[0]
    assert host.catalogue.status(IMAGE).census.held == 1
    assert await runs(made)
    await host.kill(made.id, owner=OWNER)
    await host.catalogue.remove("other")
    with pytest.raises(NotFoundError) as raised:
        await waiting[1]
    assert raised.value.error_code == "template_not_found"


async def test_a_template_replaced_while_it_restores_leaves_no_clone(
    host: Host, engine: FakeEngine
) -> None:
    engine.faults = Faults(load_delay=60)
    await add_template(host, limits=Limits(ready=2))
    assert host.catalogue.status(IMAGE).census.restoring == 2
    engine.faults = Faults()
    await add_template(host)
    assert host.catalogue.status(IMAGE).census.alive == 0
    assert not list((host.settings.run / "clones").iterdir())


async def test_an_add_that_fails_or_is_cancelled_leaves_the_old_template(
    host: Host, engine: FakeEngine, state: Path
) -> None:
    before = host.catalogue.status(IMAGE)
    engine.faults = Faults(boot=EngineError("no such machine"))
    assert await attempt(add_template(host, memory_bytes=MORE_MEMORY)) == "engine_error"
    engine.faults = Faults()
    adding = asyncio.create_task(add_template(host, memory_bytes=MORE_MEMORY))
    await asyncio.sleep(0.05)
    adding.cancel()
    await asyncio.wait({adding})
    assert adding.cancelled()
    assert host.catalogue.status(IMAGE) == before
    assert snapshots(state) == [before.snapshot]
    assert not list((host.settings.run / "clones").iterdir())


async def test_a_template_that_the_journal_does_not_take_is_not_there(
    host: Host, state: Path
) -> None:
    await host.store._journal.run(
        lambda db: db.execute(
            "CREATE TRIGGER no BEFORE INSERT ON images "
            "BEGIN SELECT RAISE(ABORT, 'as the test wants it'); END"
        )
    )
    with pytest.raises(StoreError):
        await add_template(host, "new", limits=Limits(ready=1))
    assert [status.name for status in host.catalogue.statuses] == [IMAGE]
    assert not list((host.settings.run / "clones").iterdir())
    assert b'template="new",state' not in host.metrics.render()


async def test_a_removal_that_the_journal_does_not_take_keeps_the_template(host: Host) -> None:
    await host.store._journal.run(
        lambda db: db.execute(
            "CREATE TRIGGER no BEFORE DELETE ON templates "
            "BEGIN SELECT RAISE(ABORT, 'as the test wants it'); END"
        )
    )
    with pytest.raises(StoreError):
        await host.catalogue.remove(IMAGE)
    assert await runs(await host.create(wanted(), owner=OWNER))


async def test_a_removed_template_is_not_in_the_metrics(host: Host) -> None:
    shown = b'vmpool_pool_waiting{template="python"}'
    assert shown in host.metrics.render()
    await host.catalogue.remove(IMAGE)
    assert shown not in host.metrics.render()


async def test_closing_ends_an_add_and_says_so(host: Host) -> None:
    adding = asyncio.create_task(add_template(host, "new", memory_bytes=MORE_MEMORY))
    await until(lambda: any((host.settings.run / "clones").iterdir()))
    await host.catalogue.close()
    with pytest.raises(CapacityError) as raised:
        await adding
    assert raised.value.error_code == "pool_closed"
    assert not list((host.settings.run / "clones").iterdir())
    with pytest.raises(CapacityError):
        await add_template(host, "late")


async def test_what_cannot_be_is_refused(host: Host) -> None:
    add = host.catalogue.add
    for request, code in (
        (TemplateRequest(name="x", image="none"), "image_not_found"),
        (TemplateRequest(name="x", image=IMAGE, memory_bytes=MIB + 1), "invalid_machine"),
        (
            TemplateRequest(name="x", image=IMAGE, limits=Limits(memory_bytes=MIB)),
            "invalid_limits",
        ),
    ):
        with pytest.raises(VmpoolError) as raised:
            await add(request, progress=lambda _: None)
        assert raised.value.error_code == code
    assert [status.name for status in host.catalogue.statuses] == [IMAGE]
