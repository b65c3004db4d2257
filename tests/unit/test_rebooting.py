"""A sandbox of which a disk was kept alone is booted on it, as who it was, whatever goes wrong."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.fake_host import OWNER, add_template, opened, until, wanted
from tests.fakes import Faults
from tests.standing import stand
from tests.turns import answers
from tests.unit import disked_host
from tests.unit.disked_host import DISK_BYTES
from vmpool import clone, nursery, rebooting, stillness
from vmpool.errors import EngineError, GuestError, ImageError, InvalidRequestError, StoreError
from vmpool.lanes import Lanes
from vmpool.lifecycle import AutoResume, Keep, OnExpiry, SandboxState
from vmpool.snapshot import DEVICE_STATE, Snapshot

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from tests.fakes import FakeEngine
    from vmpool.host import Host
    from vmpool.vault import Checkpoint

NOT_DONE = EngineError("it did not", code="qmp_refused")
standing = disked_host.standing
disked = disked_host.disked


def kept(host: Host, id: str) -> Checkpoint:
    found = host._vault.pause_of(id)
    assert found is not None
    return found


async def test_a_disk_is_kept_alone_and_booted_on_as_who_it_was(
    disked: Host, engine: FakeEngine
) -> None:
    made = await disked.create(wanted(env={"A": "1"}), owner=OWNER)
    before, key, boots = made.receipt, made.clone.key, engine.boots
    await disked.pause(made.id, owner=OWNER, keep=Keep.DISK)
    assert made.state is SandboxState.PAUSED
    assert kept(disked, made.id).keep is Keep.DISK
    files = disked.settings.state / "checkpoints" / kept(disked, made.id).id
    assert {path.name for path in files.iterdir()} == {
        *("layer-00", "manifest.json", "signature.json")
    }
    await disked.resume(made.id, owner=OWNER, timeout=None)
    assert engine.boots == boots + 1
    assert (made.receipt.hostname, made.receipt.machine_id) == (before.hostname, before.machine_id)
    assert made.clone.key != key
    assert not list((disked.settings.state / "checkpoints").iterdir())
    await answers(made)
    await disked.pause(made.id, owner=OWNER)  # it is of its template like any other
    assert kept(disked, made.id).keep is Keep.MEMORY
    await disked.resume(made.id, owner=OWNER, timeout=None)
    assert engine.boots == boots + 1
    await answers(made)


async def test_memory_that_was_kept_is_dropped_for_who_wants_the_disk_alone(
    disked: Host, engine: FakeEngine
) -> None:
    made = await disked.create(wanted(), owner=OWNER)
    await disked.pause(made.id, owner=OWNER)
    boots = engine.boots
    await disked.resume(made.id, owner=OWNER, timeout=60, keep=Keep.DISK)
    assert engine.boots == boots + 1
    assert 50 < made.left_seconds <= 60
    await answers(made)


async def test_a_sandbox_without_a_disk_runs_on(host: Host) -> None:
    made = await host.create(wanted(), owner=OWNER)
    with pytest.raises(InvalidRequestError) as caught:
        await host.pause(made.id, owner=OWNER, keep=Keep.DISK)
    assert caught.value.error_code == "disk_missing"
    assert made.state is SandboxState.RUNNING
    await answers(made)
    checkpoint = await host.checkpoint(made.id, owner=OWNER, name="of-one")
    for source in ({}, {"template": None, "checkpoint": checkpoint.id}):
        with pytest.raises(InvalidRequestError) as caught:
            await host.create(wanted(on_expiry=OnExpiry.PAUSE_DISK, **source), owner=OWNER)
        assert caught.value.error_code == "disk_missing"
    assert host.sandboxes(owner=OWNER) == [made]


@pytest.mark.parametrize(
    ("script", "why"),
    [("echo no disk >&2; exit 1", "no disk"), ("yes | head -c 100000", "why"), ("exit 0", "why")],
)
async def test_a_guest_that_does_not_write_its_disk_runs_on(
    disked: Host, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    stand(monkeypatch, script)
    made = await disked.create(wanted(), owner=OWNER)
    with pytest.raises(GuestError, match=why) as caught:
        await disked.pause(made.id, owner=OWNER, keep=Keep.DISK)
    assert caught.value.error_code == "disk_unwritten"
    await answers(made)
    assert not list((disked.settings.state / "checkpoints").iterdir())


async def test_a_guest_that_never_stands_still_is_not_waited_for(
    disked: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand(monkeypatch, "sleep 600")
    monkeypatch.setattr(stillness, "TIMEOUT", 0.2)
    made = await disked.create(wanted(), owner=OWNER)
    with pytest.raises(GuestError) as caught:
        await disked.pause(made.id, owner=OWNER, keep=Keep.DISK)
    assert caught.value.error_code == "disk_unwritten"
    await answers(made)


async def test_a_disk_that_was_held_for_too_long_is_not_believed(
    disked: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stillness, "TRUSTED_SECONDS", -1.0)
    made = await disked.create(wanted(), owner=OWNER)
    with pytest.raises(GuestError, match="held still") as caught:
        await disked.pause(made.id, owner=OWNER, keep=Keep.DISK)
    assert caught.value.error_code == "disk_unwritten"
    await answers(made)


@pytest.mark.parametrize(
    "faults",
    [Faults(pause=NOT_DONE), Faults(take=NOT_DONE), Faults(write=NOT_DONE)],
    ids=["pause", "take", "write"],
)
async def test_a_guest_whose_disk_is_not_saved_is_let_go(
    disked: Host, tmp_path: Path, faults: Faults
) -> None:
    made = await disked.create(wanted(), owner=OWNER)
    made.clone.machine._faults = faults  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="it did not"):
        await disked.pause(made.id, owner=OWNER, keep=Keep.DISK)
    await until((tmp_path / "let-go").exists)
    await answers(made)


async def test_a_boot_is_tried_again_and_a_sandbox_that_cannot_stays_paused(
    disked: Host, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await disked.create(wanted(), owner=OWNER)
    await disked.pause(made.id, owner=OWNER, keep=Keep.DISK)
    engine.faults = Faults(life=0.0)
    boots = engine.boots
    with pytest.raises(GuestError) as caught:
        await disked.resume(made.id, owner=OWNER, timeout=None)
    assert caught.value.error_code == "guest_boot_failed"
    assert engine.boots == boots + rebooting.ATTEMPTS
    assert made.state is SandboxState.PAUSED
    assert not list((disked.settings.run / "clones").iterdir())
    engine.faults = Faults()

    async def unwritten(*_: Any, **__: Any) -> None:
        raise StoreError("the journal cannot be written", code="store_failed")

    with monkeypatch.context() as patched:
        patched.setattr(disked.store.checkpoints, "resume", unwritten)
        with pytest.raises(StoreError):
            await disked.resume(made.id, owner=OWNER, timeout=None)
    assert made.state is SandboxState.PAUSED
    assert not list((disked.settings.run / "clones").iterdir())
    await disked.resume(made.id, owner=OWNER, timeout=None)
    await answers(made)


async def test_a_disk_outlives_its_server_and_wakes_when_it_is_needed(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine) as host:
        await add_template(host, disk_bytes=DISK_BYTES)
        request = wanted(auto_resume=AutoResume.ON_REQUEST, on_expiry=OnExpiry.PAUSE_DISK)
        made = await host.create(request, owner=OWNER)
        await host.set_timeout(made.id, owner=OWNER, timeout=0.01)
        await until(lambda: made.state is SandboxState.PAUSED)
        await until(lambda: not list((state / "run/clones").iterdir()))
    async with opened(state, engine) as host:
        assert kept(host, made.id).keep is Keep.DISK
        assert not (state / "checkpoints" / kept(host, made.id).id / DEVICE_STATE).exists()
        again = await host.awake(made.id, owner=OWNER)
        assert again.claim.on_expiry is OnExpiry.PAUSE_DISK
        await answers(again)


@pytest.mark.parametrize("name", ["kernel", "initrd", "root.erofs", "manifest.json"])
async def test_no_disk_is_booted_with_an_image_that_was_changed(
    disked: Host, engine: FakeEngine, name: str
) -> None:
    made = await disked.create(wanted(), owner=OWNER)
    await disked.pause(made.id, owner=OWNER, keep=Keep.DISK)
    (path,) = (disked.settings.state / "images").glob(f"*/{name}")
    sound, boots = path.read_bytes(), engine.boots
    path.write_bytes(sound.replace(b"by nobody", b"by anyone").replace(b"for tests", b"for tears"))
    assert path.read_bytes() != sound
    with pytest.raises(ImageError) as caught:
        await disked.resume(made.id, owner=OWNER, timeout=None)
    assert caught.value.error_code == "image_damaged"
    assert engine.boots == boots
    assert made.state is SandboxState.PAUSED
    path.write_bytes(sound)
    await disked.resume(made.id, owner=OWNER, timeout=None)
    await answers(made)


@pytest.mark.parametrize(("keep", "step"), [(Keep.DISK, "reboot"), (Keep.MEMORY, "descend")])
async def test_a_tenant_that_resumes_by_the_dozen_puts_off_no_other(
    state: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, keep: Keep, step: str
) -> None:
    for module in (rebooting, nursery):
        monkeypatch.setattr(module, "AT_ONCE", 2)
    wake, gate, woken = getattr(clone, step), asyncio.Event(), list[str]()
    owner_of: dict[str, str] = {}  # of states

    async def gated(*what: Any, **how: Any) -> Any:
        given = [each.manifest.id for each in what if isinstance(each, Snapshot)]
        woken.extend(owner_of[id] for id in given if id in owner_of)
        await gate.wait()
        return await wake(*what, **how)

    monkeypatch.setattr(clone, step, gated)
    async with opened(state, engine) as host:
        await add_template(host, disk_bytes=DISK_BYTES)
        made = [await host.create(wanted(), owner=owner) for owner in [*["greedy"] * 5, "modest"]]
        for each in made:
            await host.pause(each.id, owner=each.owner, keep=keep)
            owner_of[kept(host, each.id).id] = each.owner
        async with asyncio.TaskGroup() as group:
            for count, each in enumerate(made, 1):
                group.create_task(host.resume(each.id, owner=each.owner, timeout=None))
                await until(partial(_are_there, count, woken, _lanes(host, keep)))
            assert woken == ["greedy", "greedy"]
            gate.set()
        assert "modest" in woken[2:4]


def _lanes(host: Host, keep: Keep) -> Lanes:
    boots = host._nursery._boot.__self__  # type: ignore[attr-defined]
    found = host._nursery._waking if keep is Keep.MEMORY else boots._lanes
    assert isinstance(found, Lanes)
    return found


def _are_there(count: int, woken: list[str], lanes: Lanes) -> bool:
    return len(woken) + len(list(lanes._waiting)) == count


async def test_killing_a_sandbox_that_boots_waits_for_no_boot(
    disked: Host, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await disked.create(wanted(), owner=OWNER)
    await disked.pause(made.id, owner=OWNER, keep=Keep.DISK)
    boot, began = engine.reboot, asyncio.Event()

    async def slow(*what: Any) -> Any:
        machine = await boot(*what)
        await machine.pause()  # and so it never answers
        began.set()
        return machine

    monkeypatch.setattr(engine, "reboot", slow)
    resuming = asyncio.ensure_future(disked.resume(made.id, owner=OWNER, timeout=None))
    await began.wait()
    await disked.kill(made.id, owner=OWNER)
    with pytest.raises(Exception, match="ended"):
        await resuming
    await until(lambda: not list((disked.settings.run / "clones").iterdir()))
    assert not list((disked.settings.state / "checkpoints").iterdir())
