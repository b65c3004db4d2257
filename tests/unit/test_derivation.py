"""Templates of checkpoints: whole or not at all, and on their own two feet afterwards."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tests.fake_host import OWNER, SPARELESS, opened, wanted
from tests.fakes import FakeEngine, Faults
from vmpool.catalogue import TemplateState
from vmpool.derivation import DeriveRequest, number_of
from vmpool.errors import (
    ConflictError,
    DiskFullError,
    NotFoundError,
    QuotaError,
    SnapshotError,
    VmpoolError,
)
from vmpool.host import CreateRequest
from vmpool.policy import Limits

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.host import Host


async def kept(host: Host, **request: object) -> str:
    """Keep a checkpoint of a sandbox that is gone then; return its id."""
    made = await host.create(wanted(**request), owner=OWNER)
    checkpoint = await host.checkpoint(made.id, owner=OWNER, name=None)
    await host.kill(made.id, owner=OWNER)
    return checkpoint.id


def of(checkpoint: str, *keys: str, **more: object) -> DeriveRequest:
    fields: dict[str, object] = {"limits": SPARELESS, **more}
    return DeriveRequest(checkpoint=checkpoint, keys=keys, **fields)  # type: ignore[arg-type]


def snapshots(host: Host) -> set[str]:
    return {path.name for path in (host.settings.state / "snapshots").iterdir()}


async def left(host: Host, state: Path) -> Path:
    """Return what the next server finds when this one has ended."""
    await host.catalogue.close()
    await host.close()
    return shutil.copytree(state, state.with_name(f"{state.name}-left"))


async def test_a_template_of_a_checkpoint_outlives_that_and_a_restart(
    host: Host, state: Path, engine: FakeEngine
) -> None:
    before, boots = snapshots(host), engine.boots
    checkpoint = await kept(host, env={"A": "1", "B": "1"})
    request = of(checkpoint, "made", "made:second", env={"B": "2"})
    status = await host.derivation.derive(request, owner=OWNER)
    assert (status.state, status.snapshot) == (TemplateState.READY, request.snapshot)
    assert number_of(request.snapshot) == request.number
    assert snapshots(host) == {*before, request.snapshot}
    await host.remove_checkpoint(checkpoint, owner=OWNER)
    sandbox = await host.create(wanted(template="made", env={"C": "3"}), owner=OWNER)
    row = await host.store.sandbox(sandbox.id)
    assert row.env == {"A": "1", "B": "2", "C": "3"}
    await host.kill(sandbox.id, owner=OWNER)
    other = await left(host, state)
    async with opened(other, engine) as again:
        for name in ("made", "made:second"):
            assert (await again.catalogue.settled(name)).state is TemplateState.READY
        sandbox = await again.create(wanted(template="made:second"), owner=OWNER)
        assert (await again.store.sandbox(sandbox.id)).env == {"A": "1", "B": "2"}
        await again.kill(sandbox.id, owner=OWNER)
        await again.catalogue.remove("made")
        assert request.snapshot in snapshots(again)
        await again.catalogue.remove("made:second")
        assert snapshots(again) == before
    assert engine.boots == boots


async def test_what_was_half_made_when_the_server_died_is_swept(
    host: Host, state: Path, engine: FakeEngine
) -> None:
    request = of(await kept(host), "made")
    await host.derivation.derive(request, owner=OWNER)
    await host.store.remove_template("made")  # as if it had died before the row
    other = await left(host, state)
    async with opened(other, engine) as again:
        assert request.snapshot not in snapshots(again)
        with pytest.raises(NotFoundError):
            again.catalogue.status("made")


async def test_a_snapshot_of_another_qemu_makes_its_template_fail_and_is_kept(
    host: Host, state: Path
) -> None:
    request = of(await kept(host), "made")
    await host.derivation.derive(request, owner=OWNER)
    other = await left(host, state)
    async with opened(other, FakeEngine(version="11.0.0")) as again:
        status = await again.catalogue.settled("made")
        assert status.state is TemplateState.FAILED
        assert "saved by QEMU '10.0.2'" in status.error
        assert request.snapshot in snapshots(again)


@pytest.mark.parametrize(
    "faults",
    [
        Faults(prepare=DiskFullError("no room for a machine")),
        Faults(load=SnapshotError("it cannot be loaded")),
        Faults(pause=SnapshotError("it does not hold still")),
        Faults(write=DiskFullError("no room for the state")),
    ],
    ids=["prepare", "load", "pause", "write"],
)
async def test_a_failure_leaves_no_snapshot_no_machine_and_the_template_before(
    host: Host, engine: FakeEngine, faults: Faults
) -> None:
    checkpoint = await kept(host)
    first = of(checkpoint, "made")
    await host.derivation.derive(first, owner=OWNER)
    there = snapshots(host)
    engine.faults = faults
    with pytest.raises(VmpoolError):
        await host.derivation.derive(of(checkpoint, "made"), owner=OWNER)
    engine.faults = Faults()
    assert snapshots(host) == there
    assert not list((host.settings.run / "clones").iterdir())
    assert host.catalogue.status("made").snapshot == first.snapshot
    assert host.quotas.used(OWNER) == replace(host.quotas.used(OWNER), sandboxes=0, vcpus=0)


async def test_secrets_stay_out_of_templates(host: Host) -> None:
    checkpoint = await kept(host, secrets={"KEY": "x"})
    with pytest.raises(ConflictError) as refused:
        await host.derivation.derive(of(checkpoint, "made"), owner=OWNER)
    assert refused.value.error_code == "checkpoint_secret"


async def test_others_checkpoints_are_not_there(host: Host) -> None:
    checkpoint = await kept(host)
    with pytest.raises(NotFoundError):
        await host.derivation.derive(of(checkpoint, "made"), owner="stranger")


async def test_a_template_is_replaced_and_its_sandboxes_go_on(host: Host) -> None:
    checkpoint = await kept(host)
    first, second = of(checkpoint, "made"), of(checkpoint, "made")
    await host.derivation.derive(first, owner=OWNER)
    old = await host.create(wanted(template="made"), owner=OWNER)
    await host.derivation.derive(second, owner=OWNER)
    assert {first.snapshot, second.snapshot} <= snapshots(host)
    mine = await host.checkpoint(old.id, owner=OWNER, name="later")
    await host.kill(old.id, owner=OWNER)
    again = await host.create(
        CreateRequest(checkpoint=mine.id, timeout=60.0, wait=60.0), owner=OWNER
    )
    await host.kill(again.id, owner=OWNER)
    await host.remove_checkpoint("later", owner=OWNER)
    assert first.snapshot not in snapshots(host)


async def test_a_machine_to_make_it_in_counts_in_the_quota(host: Host) -> None:
    tenant = await host.store.tenants.add("tenant", {"sandboxes": 1})
    host.quotas._asked_at = float("-inf")
    made = await host.create(wanted(), owner=tenant.id)
    checkpoint = await host.checkpoint(made.id, owner=tenant.id, name=None)
    with pytest.raises(QuotaError):
        await host.derivation.derive(of(checkpoint.id, f"{tenant.id}/made"), owner=tenant.id)
    await host.kill(made.id, owner=tenant.id)


async def test_a_snapshot_that_gets_no_name_is_removed(host: Host) -> None:
    tenant = await host.store.tenants.add("tenant", {"vcpus": 1})
    host.quotas._asked_at = float("-inf")
    made = await host.create(wanted(), owner=tenant.id)
    checkpoint = await host.checkpoint(made.id, owner=tenant.id, name=None)
    await host.kill(made.id, owner=tenant.id)
    request = of(checkpoint.id, f"{tenant.id}/made", limits=Limits(ready=2))
    there = snapshots(host)
    with pytest.raises(QuotaError):
        await host.derivation.derive(request, owner=tenant.id)
    assert snapshots(host) == there
