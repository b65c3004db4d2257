"""A pause that keeps a disk alone, and fails: no guest stands still, and no state is lost."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING

import pytest

from tests.fake_host import OWNER, add_template, opened, until, wanted
from tests.fakes import Faults
from tests.standing import stand
from tests.turns import answers
from tests.unit import disked_host
from tests.unit.disked_host import DISK_BYTES
from vmpool import checkpoint, stillness
from vmpool.config import TenantSettings
from vmpool.errors import EngineError, GuestError, InvalidRequestError, QuotaError, StoreError
from vmpool.lifecycle import Keep, SandboxState
from vmpool.quota import DEVICE_STATE_BYTES
from vmpool.stillness import Stillness

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from tests.fakes import FakeEngine
    from vmpool.host import Host

standing = disked_host.standing
disked = disked_host.disked


async def full(*_: Any, **__: Any) -> None:
    raise StoreError("the journal cannot be written", code="store_failed")


def keep_of(host: Host, id: str) -> Keep | None:
    found = host._vault.pause_of(id)
    return None if found is None else found.keep


async def test_a_sandbox_without_a_disk_is_not_woken_to_keep_it(host: Host) -> None:
    made = await host.create(wanted(), owner=OWNER)
    await host.pause(made.id, owner=OWNER)
    kept = host._vault.pause_of(made.id)
    with pytest.raises(InvalidRequestError) as caught:
        await host.resume(made.id, owner=OWNER, timeout=None, keep=Keep.DISK)
    assert caught.value.error_code == "disk_missing"
    assert made.state is SandboxState.PAUSED
    assert host._vault.pause_of(made.id) == kept
    await host.resume(made.id, owner=OWNER, timeout=None)
    await answers(made)


async def test_memory_is_not_dropped_when_the_disk_cannot_be_kept(
    disked: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await disked.create(wanted(), owner=OWNER)
    await disked.pause(made.id, owner=OWNER)
    stand(monkeypatch, "echo no disk >&2; exit 1")
    with pytest.raises(GuestError, match="no disk") as caught:
        await disked.resume(made.id, owner=OWNER, timeout=60, keep=Keep.DISK)
    assert caught.value.error_code == "disk_unwritten"
    assert made.state is SandboxState.PAUSED
    assert keep_of(disked, made.id) is Keep.MEMORY
    await disked.resume(made.id, owner=OWNER, timeout=None)
    assert 50 < made.left_seconds <= 60
    await answers(made)


async def test_what_can_be_kept_in_no_way_runs_on(
    disked: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await disked.create(wanted(), owner=OWNER)
    await disked.pause(made.id, owner=OWNER)
    with monkeypatch.context() as patched:
        patched.setattr(disked.store.checkpoints, "pause", full)
        with pytest.raises(StoreError):
            await disked.resume(made.id, owner=OWNER, timeout=None, keep=Keep.DISK)
    assert made.state is SandboxState.RUNNING
    await answers(made)
    await disked.pause(made.id, owner=OWNER)


async def test_a_guest_is_let_go_when_the_journal_cannot_take_its_disk(
    disked: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await disked.create(wanted(), owner=OWNER)
    monkeypatch.setattr(disked.store.checkpoints, "pause", full)
    with pytest.raises(StoreError):
        await disked.pause(made.id, owner=OWNER, keep=Keep.DISK)
    assert made.state is SandboxState.RUNNING
    await until((tmp_path / "let-go").exists)
    await answers(made)


async def test_a_guest_is_let_go_when_its_pause_is_cancelled_as_it_fails(
    disked: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await disked.create(wanted(), owner=OWNER)
    machine = made.clone.machine
    machine._faults = Faults(take=EngineError("it did not", code="qmp_refused"))  # type: ignore[attr-defined]
    resume, failing = machine.resume, asyncio.Event()

    async def resumed() -> None:
        failing.set()
        await cancelled.wait()
        await resume()

    cancelled = asyncio.Event()
    monkeypatch.setattr(machine, "resume", resumed)
    template = (await disked.catalogue.lineage_of_running(base_of(disked, made.id))).snapshot
    halting = asyncio.ensure_future(
        checkpoint.halt_disk(
            made.clone,
            template,
            Stillness(made.clone.agent),
            id="cp",
            snapshots=disked._vault.directory,
        )
    )
    await failing.wait()
    halting.cancel()
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await halting
    await until((tmp_path / "let-go").exists)
    await answers(made)


def base_of(host: Host, id: str) -> str:
    holding = host._household.living(id)
    assert holding is not None
    return holding.base_id


async def test_a_disk_is_believed_in_from_when_the_guest_was_asked(
    disked: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stillness, "TRUSTED_SECONDS", 1.0)
    stand(monkeypatch, "echo still; read line; sleep 1.1; echo again; read line")
    made = await disked.create(wanted(), owner=OWNER)
    with pytest.raises(GuestError, match="held still") as caught:
        await disked.pause(made.id, owner=OWNER, keep=Keep.DISK)
    assert caught.value.error_code == "disk_unwritten"
    await answers(made)


async def test_a_guest_that_does_not_answer_that_it_still_stands_is_not_believed(
    disked: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand(monkeypatch, "echo still; read line; echo why not >&2")
    made = await disked.create(wanted(), owner=OWNER)
    with pytest.raises(GuestError, match="why not"):
        await disked.pause(made.id, owner=OWNER, keep=Keep.DISK)
    await answers(made)


async def test_what_a_killed_process_froze_is_let_go_of(
    disked: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand(monkeypatch, thaw=f"echo thawed > {tmp_path}/thawed")
    made = await disked.create(wanted(), owner=OWNER)
    processes = made.clone.agent.processes
    held = Stillness(made.clone.agent)
    await held.begin()
    (holder,) = await processes.list()
    await processes.signal(holder.pid, signal.SIGKILL)
    await held.end()
    await until((tmp_path / "thawed").exists)


async def test_room_is_kept_for_the_disk_alone(state: Path, engine: FakeEngine) -> None:
    tenants = TenantSettings(disk_bytes=DISK_BYTES + DEVICE_STATE_BYTES)
    async with opened(state, engine, tenants=tenants) as host:
        await add_template(host, disk_bytes=DISK_BYTES)
        made = await host.create(wanted(), owner="t")
        with pytest.raises(QuotaError) as refused:
            await host.pause(made.id, owner="t")
        assert refused.value.resource == "disk_bytes"
        await host.pause(made.id, owner="t", keep=Keep.DISK)
        assert keep_of(host, made.id) is Keep.DISK


async def test_the_log_says_what_of_a_sandbox_was_to_go_on(disked: Host) -> None:
    made = await disked.create(wanted(), owner=OWNER)
    await disked.pause(made.id, owner=OWNER)
    await disked.resume(made.id, owner=OWNER, timeout=None, keep=Keep.DISK)
    entries = await disked.store.audit.entries(100)
    assert [entry.detail for entry in entries if entry.action == "sandbox.resume"] == [
        {"keep": "disk"}
    ]
