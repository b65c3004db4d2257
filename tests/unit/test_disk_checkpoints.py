"""A disk that was kept alone of a sandbox that runs on, and what is booted on it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.fake_host import OWNER, SPARELESS, add_template, opened, until, wanted
from tests.fakes import Faults
from tests.parcels import pieces
from tests.standing import stand
from tests.turns import answers
from tests.unit import disked_host
from tests.unit.disked_host import DISK_BYTES
from vmpool import checkpoint
from vmpool.config import TenantSettings
from vmpool.derivation import DeriveRequest
from vmpool.errors import EngineError, GuestError, InvalidRequestError, QuotaError, StoreError
from vmpool.lifecycle import Keep, SandboxState
from vmpool.quota import DEVICE_STATE_BYTES
from vmpool.shipping import Cargo
from vmpool.stillness import Stillness

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from tests.fakes import FakeEngine
    from vmpool.host import Host
    from vmpool.sandbox import Sandbox
    from vmpool.vault import Checkpoint

NOT_DONE = EngineError("it did not", code="qmp_refused")
standing = disked_host.standing
disked = disked_host.disked


async def kept(host: Host, sandbox: Sandbox, name: str = "disk") -> Checkpoint:
    return await host.checkpoint(sandbox.id, owner=OWNER, name=name, keep=Keep.DISK)


async def made_of(host: Host, checkpoint: Checkpoint, **more: object) -> Sandbox:
    source = {"template": "", "checkpoint": checkpoint.id}
    return await host.create(wanted(**source, **more), owner=OWNER)


def files(host: Host) -> set[str]:
    return {
        path.name
        for directory in (host.settings.state / "checkpoints").iterdir()
        for path in directory.iterdir()
    }


async def test_a_disk_is_kept_of_a_sandbox_that_runs_on_and_others_boot_on_it(
    disked: Host, engine: FakeEngine, tmp_path: Path
) -> None:
    parent = await disked.create(wanted(env={"A": "1"}), owner=OWNER)
    machine, boots = parent.clone, engine.boots
    found = await kept(disked, parent)
    await until((tmp_path / "let-go").exists)
    assert (parent.state, parent.clone) == (SandboxState.RUNNING, machine)
    await answers(parent)
    assert (found.keep, found.dirty_bytes) == (Keep.DISK, 0)
    assert files(disked) == {"layer-00", "manifest.json", "signature.json"}
    children = [await made_of(disked, found, env={"B": str(number)}) for number in range(2)]
    assert engine.boots == boots + 2
    for number, child in enumerate(children):
        assert child.claim.env == {"A": "1", "B": str(number)}
        assert child.receipt.hostname == child.clone.id
        await answers(child)
    assert len({each.receipt.machine_id for each in (parent, *children)}) == 3
    await disked.pause(children[0].id, owner=OWNER)  # they are of their template like any
    await disked.resume(children[0].id, owner=OWNER, timeout=None)
    assert engine.boots == boots + 2
    await answers(children[0])


async def test_a_sandbox_is_rolled_back_to_a_disk_as_who_it_was(
    disked: Host, engine: FakeEngine
) -> None:
    made = await disked.create(wanted(), owner=OWNER)
    before, machine, boots = made.receipt, made.clone.id, engine.boots
    await kept(disked, made)
    await disked.rollback(made.id, owner=OWNER, checkpoint="disk")
    assert engine.boots == boots + 1
    assert made.clone.id != machine
    assert (made.receipt.hostname, made.receipt.machine_id) == (before.hostname, before.machine_id)
    await answers(made)


async def test_there_is_no_disk_to_keep_where_there_is_none(host: Host) -> None:
    made = await host.create(wanted(), owner=OWNER)
    with pytest.raises(InvalidRequestError) as caught:
        await kept(host, made)
    assert caught.value.error_code == "disk_missing"
    await answers(made)
    assert await host.checkpoints(owner=OWNER, sandbox=None) == []


@pytest.mark.parametrize(
    "faults",
    [Faults(pause=NOT_DONE), Faults(take=NOT_DONE), Faults(write=NOT_DONE)],
    ids=["pause", "take", "write"],
)
async def test_a_guest_whose_disk_is_not_kept_is_let_go(
    disked: Host, tmp_path: Path, faults: Faults
) -> None:
    made = await disked.create(wanted(), owner=OWNER)
    made.clone.machine._faults = faults  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="it did not"):
        await kept(disked, made)
    await until((tmp_path / "let-go").exists)
    await answers(made)
    assert files(disked) == set()


async def test_a_guest_that_does_not_write_its_disk_runs_on(
    disked: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand(monkeypatch, "echo no disk >&2; exit 1")
    made = await disked.create(wanted(), owner=OWNER)
    with pytest.raises(GuestError, match="no disk") as caught:
        await kept(disked, made)
    assert caught.value.error_code == "disk_unwritten"
    await answers(made)
    assert files(disked) == set()


async def test_a_disk_that_the_journal_does_not_take_is_not_kept(
    disked: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: Any, **__: Any) -> None:
        raise StoreError("the journal cannot be written", code="store_failed")

    made = await disked.create(wanted(), owner=OWNER)
    monkeypatch.setattr(disked.store.checkpoints, "record", full)
    with pytest.raises(StoreError):
        await kept(disked, made)
    await until((tmp_path / "let-go").exists)
    await answers(made)
    assert files(disked) == set()


async def test_a_guest_is_let_go_when_who_asked_leaves_as_it_goes_on(
    disked: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await disked.create(wanted(), owner=OWNER)
    machine = made.clone.machine
    resume, going, left = machine.resume, asyncio.Event(), asyncio.Event()

    async def resumed() -> None:
        going.set()
        await left.wait()
        await resume()

    monkeypatch.setattr(machine, "resume", resumed)
    holding = disked._household.living(made.id)
    assert holding is not None
    lineage = await disked.catalogue.lineage_of_running(holding.base_id)
    saving = asyncio.ensure_future(
        checkpoint.save_disk(
            made.clone,
            lineage.snapshot,
            Stillness(made.clone.agent),
            id="cp",
            snapshots=disked._vault.directory,
        )
    )
    await going.wait()
    saving.cancel()
    left.set()
    with pytest.raises(asyncio.CancelledError):
        await saving
    await until((tmp_path / "let-go").exists)
    await answers(made)
    assert files(disked) == set()


async def test_room_is_kept_for_the_disk_alone(state: Path, engine: FakeEngine) -> None:
    tenants = TenantSettings(disk_bytes=DISK_BYTES + DEVICE_STATE_BYTES)
    async with opened(state, engine, tenants=tenants) as host:
        await add_template(host, disk_bytes=DISK_BYTES)
        made = await host.create(wanted(), owner="t")
        with pytest.raises(QuotaError) as refused:
            await host.checkpoint(made.id, owner="t", name=None)
        assert refused.value.resource == "disk_bytes"
        await host.checkpoint(made.id, owner="t", name=None, keep=Keep.DISK)


async def test_the_next_server_and_another_host_know_that_it_is_a_disk(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine) as host:
        await add_template(host, disk_bytes=DISK_BYTES)
        made = await host.create(wanted(), owner=OWNER)
        found = await kept(host, made)
        await host.kill(made.id, owner=OWNER)
        parcel = b"".join(
            [each async for each in host.export_checkpoint("disk", owner=OWNER, cargo=Cargo.DELTA)]
        )
    async with opened(state, engine) as host:
        assert host.find_checkpoint("disk", owner=OWNER) == found
        arrived = await host.import_checkpoint(pieces(parcel), owner=OWNER, name="arrived")
        assert arrived.keep is Keep.DISK
        boots = engine.boots
        await answers(await made_of(host, arrived))
        assert engine.boots == boots + 1


async def test_a_template_is_made_of_a_disk(disked: Host, engine: FakeEngine) -> None:
    made = await disked.create(wanted(), owner=OWNER)
    found, boots = await kept(disked, made), engine.boots
    request = DeriveRequest(checkpoint=found.id, keys=("made",), limits=SPARELESS)
    await disked.derivation.derive(request, owner=OWNER)
    assert engine.boots == boots + 1
    await answers(await disked.create(wanted(template="made"), owner=OWNER))
