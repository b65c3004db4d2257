"""When a sandbox pauses by itself and when it wakes, and what is left of it by a server's end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from tests.fake_host import OWNER, add_template, opened, until, wanted
from tests.fakes import FakeEngine, Faults
from tests.turns import answers, consistent
from vmpool import expiry, household
from vmpool.config import CheckpointSettings
from vmpool.errors import (
    CapacityError,
    ConflictError,
    DiskFullError,
    InvalidRequestError,
    NotFoundError,
    SnapshotError,
)
from vmpool.host import AutoResume, CreateRequest, OnExpiry
from vmpool.lifecycle import EndReason, SandboxState
from vmpool.model import Command

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.host import Host
    from vmpool.sandbox import Sandbox

FULL = DiskFullError("no space, as the test wants it")
SLEEP = Command(argv=("sleep", "600"))


async def ended(host: Host, sandbox: Sandbox) -> EndReason | None:
    """Return why a sandbox ended, once it has."""
    await until(lambda: sandbox not in host.sandboxes(owner=OWNER))
    return (await host.store.sandbox(sandbox.id)).end_reason


async def test_a_sandbox_whose_time_is_up_pauses_when_it_was_made_so(roomy: Host) -> None:
    made = await roomy.create(wanted(timeout=2.0, on_expiry=OnExpiry.PAUSE), owner=OWNER)
    await until(lambda: made.state is SandboxState.PAUSED)
    await roomy.resume(made.id, owner=OWNER, timeout=None)
    assert 0 < made.left_seconds <= 2.0  # nothing was left: all of it again
    await until(lambda: made.state is SandboxState.PAUSED)
    await roomy.resume(made.id, owner=OWNER, timeout=600.0)
    assert 590 < made.left_seconds <= 600
    await roomy.resume(made.id, owner=OWNER, timeout=60.0)
    assert 50 < made.left_seconds <= 60
    await consistent(roomy)


async def test_a_pause_that_is_due_and_fails_is_tried_again_and_not_for_ever(
    roomy: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    request = wanted(on_expiry=OnExpiry.PAUSE)
    made = await roomy.create(request, owner=OWNER)
    machine = made.clone.machine
    machine._faults = Faults(write=FULL)  # type: ignore[attr-defined]
    await roomy.set_timeout(made.id, owner=OWNER, timeout=0.05)
    await until(lambda: "cannot be: no space" in caplog.text)
    await answers(made)  # it runs on
    assert caplog.text.count("cannot be: no space") == 1  # and has a rest
    monkeypatch.setattr(household, "RETRY_SECONDS", 0.05)
    it = await roomy._household.find(made.id, owner=OWNER)
    roomy._household.set_alarm(it, 0)
    await until(lambda: caplog.text.count("cannot be: no space") >= 3)
    machine._faults = Faults()  # type: ignore[attr-defined]
    await until(lambda: made.state is SandboxState.PAUSED)
    lost = await roomy.create(request, owner=OWNER)
    lost.clone.machine._faults = Faults(write=FULL)  # type: ignore[attr-defined]
    monkeypatch.setattr(expiry, "PATIENCE_SECONDS", 0.0)
    await roomy.set_timeout(lost.id, owner=OWNER, timeout=0.05)
    assert await ended(roomy, lost) is EndReason.EXPIRED
    await consistent(roomy)


async def test_time_stands_still_while_a_sandbox_is_paused_or_being_so(roomy: Host) -> None:
    made = await roomy.create(wanted(timeout=1.0), owner=OWNER)
    machine = made.clone.machine
    pause = machine.pause

    async def late() -> None:
        await asyncio.sleep(1.1)  # its time, and more
        await pause()

    machine.pause = late  # type: ignore[method-assign]
    await roomy.pause(made.id, owner=OWNER)
    assert made.state is SandboxState.PAUSED
    await roomy.set_timeout(made.id, owner=OWNER, timeout=60.0)
    assert made.left_seconds == 60.0
    await roomy.resume(made.id, owner=OWNER, timeout=None)
    assert 50 < made.left_seconds <= 60
    await consistent(roomy)


async def test_an_idle_sandbox_ends_and_one_that_is_used_does_not(roomy: Host) -> None:
    made = await roomy.create(wanted(idle_timeout=1.0), owner=OWNER)
    async with made.execute(SLEEP):
        await asyncio.sleep(1.3)  # the limit, and more
        assert made.state is SandboxState.RUNNING
    assert await ended(roomy, made) is EndReason.IDLE
    other = await roomy.create(
        wanted(idle_timeout=0.2, on_expiry=OnExpiry.PAUSE, auto_resume=AutoResume.ON_REQUEST),
        owner=OWNER,
    )
    await until(lambda: other.state is SandboxState.PAUSED)
    assert await roomy.awake(other.id, owner=OWNER) is other
    await until(lambda: other.state is SandboxState.PAUSED)


async def test_a_process_that_was_started_to_stay_keeps_a_sandbox_from_being_idle(
    roomy: Host,
) -> None:
    made = await roomy.create(wanted(idle_timeout=1.0), owner=OWNER)
    async with made.attended() as agent, agent.processes.begin(SLEEP) as begun:
        pid = begun.pid
    await asyncio.sleep(1.3)  # the limit, and more
    assert made.state is SandboxState.RUNNING
    async with made.attended() as agent:
        await agent.processes.signal(pid, 9)
    assert await ended(roomy, made) is EndReason.IDLE


async def test_a_request_wakes_a_sandbox_that_was_made_so_and_once(roomy: Host) -> None:
    sleeper = await roomy.create(wanted(), owner=OWNER)
    light = await roomy.create(wanted(auto_resume=AutoResume.ON_REQUEST), owner=OWNER)
    pausing = asyncio.ensure_future(roomy.pause(light.id, owner=OWNER))
    await until(lambda: light.state is SandboxState.PAUSING)
    woken = await asyncio.gather(*(roomy.awake(light.id, owner=OWNER) for _ in range(5)))
    await pausing
    assert woken == [light] * 5
    assert roomy.catalogue.status("python").census.alive == 2
    await roomy.pause(sleeper.id, owner=OWNER)
    with pytest.raises(ConflictError) as raised:
        await roomy.awake(sleeper.id, owner=OWNER)
    assert raised.value.error_code == "sandbox_paused"
    await consistent(roomy)


async def test_a_request_that_meets_a_pause_that_fails_is_served(roomy: Host) -> None:
    made = await roomy.create(wanted(), owner=OWNER)
    made.clone.machine._faults = Faults(write=FULL)  # type: ignore[attr-defined]
    pausing = asyncio.ensure_future(roomy.pause(made.id, owner=OWNER))
    await until(lambda: made.state is SandboxState.PAUSING)
    assert await roomy.awake(made.id, owner=OWNER) is made
    await answers(made)
    with pytest.raises(DiskFullError):
        await pausing


async def test_a_paused_sandbox_and_a_checkpoint_survive_their_server(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine) as host:
        await add_template(host)
        made = await host.create(wanted(env={"A": "1"}, metadata={"k": "v"}), owner=OWNER)
        await host.checkpoint(made.id, owner=OWNER, name="first")
        await host.pause(made.id, owner=OWNER)
        left, token, receipt = made.left_seconds, made.access_token, made.receipt
        running = await host.create(wanted(), owner=OWNER)
        await host.catalogue.remove("python")  # what descends from it goes on
    (state / "checkpoints/cpnobody").mkdir()
    async with opened(state, engine) as host:
        assert (await host.store.sandbox(running.id)).end_reason is EndReason.SERVER_STOPPED
        (again,) = host.sandboxes(owner=OWNER)
        assert (again.id, again.state, again.metadata) == (
            made.id,
            SandboxState.PAUSED,
            {"k": "v"},
        )
        assert not (state / "checkpoints/cpnobody").exists()
        assert again.left_seconds == left
        assert again.admits(token)
        assert await host.sandbox_by_access_token(again.id, token) is again
        assert again.access_token == token
        assert await host.sandbox_by_access_token(again.id, "another") is None
        await host.resume(again.id, owner=OWNER, timeout=None)
        assert again.receipt.machine_id == receipt.machine_id
        assert again.claim.env == {"A": "1"}
        await answers(again)
        other = await host.create(
            CreateRequest(checkpoint="first", timeout=60.0, wait=60.0), owner=OWNER
        )
        await answers(other)
        await host.remove_checkpoint("first", owner=OWNER)
        for sandbox in (again, other):
            await host.kill(sandbox.id, owner=OWNER)
        assert not list((state / "checkpoints").iterdir())
        assert not list((state / "snapshots").iterdir())  # nobody needs it any more


async def test_a_paused_sandbox_whose_state_is_gone_is_said_to_be_lost(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine) as host:
        await add_template(host)
        made = await host.create(wanted(), owner=OWNER)
        kept = await host.checkpoint(made.id, owner=OWNER, name="first")
        await host.pause(made.id, owner=OWNER)
    shutil.rmtree(state / "checkpoints")
    async with opened(state, engine) as host:
        assert not host.sandboxes(owner=OWNER)
        assert (await host.store.sandbox(made.id)).end_reason is EndReason.SERVER_LOST
        with pytest.raises(NotFoundError):
            host.find_checkpoint(kept.id, owner=OWNER)
        assert not await host.store.checkpoints.all()


async def test_a_sandbox_that_stays_paused_for_too_long_ends(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(
        state, engine, checkpoints=CheckpointSettings(paused_seconds=0.3, waiting=0)
    ) as host:
        await add_template(host)
        made = await host.create(wanted(), owner=OWNER)
        await host.pause(made.id, owner=OWNER)
        assert await ended(host, made) is EndReason.EXPIRED
        assert not list((state / "checkpoints").iterdir())


async def test_owners_keep_as_many_as_they_may_under_names_of_their_own(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine) as host:
        await host.store.tenants.change(OWNER, name=None, quota={"checkpoints": 2, "paused": 1})
        await add_template(host)
        made = [await host.create(wanted(), owner=OWNER) for _ in range(2)]
        it = made[0].id
        first = await host.checkpoint(it, owner=OWNER, name="first")
        for name, kind, code in (
            ("first", ConflictError, "checkpoint_exists"),
            ("../x", InvalidRequestError, "checkpoint_name_invalid"),
        ):
            with pytest.raises(kind) as raised:
                await host.checkpoint(it, owner=OWNER, name=name)
            assert raised.value.error_code == code
        twice = await asyncio.gather(
            *(host.checkpoint(each.id, owner=OWNER, name="second") for each in made),
            return_exceptions=True,
        )
        assert sorted(getattr(each, "error_code", "") for each in twice) == [
            "",
            "quota_exceeded",
        ]
        await host.pause(it, owner=OWNER)
        with pytest.raises(CapacityError):
            await host.pause(made[1].id, owner=OWNER)
        await answers(made[1])
        with host._vault.lent(first, to="another"), pytest.raises(ConflictError) as conflict:
            await host.remove_checkpoint("first", owner=OWNER)
        assert conflict.value.error_code == "checkpoint_in_use"
        assert "another" in conflict.value.message
        await host.remove_checkpoint(first.id, owner=OWNER)
        assert [each.name for each in await host.checkpoints(owner=OWNER, sandbox=None)] == [
            "second"
        ]
        assert await host.checkpoints(owner=OWNER, sandbox="nobody") == []
        with pytest.raises(InvalidRequestError) as unclear:
            await host.create(CreateRequest(timeout=1.0, wait=1.0), owner=OWNER)
        assert unclear.value.error_code == "source_unclear"


async def test_a_damaged_checkpoint_is_refused_and_the_sandbox_runs_on(roomy: Host) -> None:
    made = await roomy.create(wanted(), owner=OWNER)
    kept = await roomy.checkpoint(made.id, owner=OWNER, name="first")
    manifest = roomy.settings.state / "checkpoints" / kept.id / "manifest.json"
    manifest.chmod(0o600)
    manifest.write_text("{")
    with pytest.raises(SnapshotError):
        await roomy.rollback(made.id, owner=OWNER, checkpoint="first")
    with pytest.raises(SnapshotError):
        await roomy.create(CreateRequest(checkpoint="first", timeout=1.0, wait=1.0), owner=OWNER)
    await consistent(roomy)


def waiting(host: Host) -> int:
    """Return how many hypervisors wait for a state."""
    return host._nursery._standby.waiting


async def test_a_hypervisor_waits_for_a_template_of_which_sandboxes_are_paused(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine, checkpoints=CheckpointSettings()) as host:
        await add_template(host)
        made = [await host.create(wanted(), owner=OWNER) for _ in range(2)]
        assert waiting(host) == 0
        for each in made:
            await host.pause(each.id, owner=OWNER)
        await until(lambda: waiting(host) == 1)
        (spare,) = host._nursery._standby._waiting.values()
        await host.resume(made[0].id, owner=OWNER, timeout=None)
        assert made[0].clone.id == spare.id
        await answers(made[0])
        await until(lambda: waiting(host) == 1)  # one more is paused
        (spare,) = host._nursery._standby._waiting.values()
        os.kill(spare.shell.pid, signal.SIGKILL)
        await until(lambda: not host._nursery._standby._keepers)
        await host.resume(made[1].id, owner=OWNER, timeout=None)
        await answers(made[1])
        await until(lambda: not host._nursery._standby._keepers)  # nobody is paused any more
        await host.pause(made[1].id, owner=OWNER)
        await until(lambda: waiting(host) == 1)
        await host.kill(made[1].id, owner=OWNER)
        await until(lambda: not host._nursery._standby._keepers)
        await host.pause(made[0].id, owner=OWNER)
    assert not list((state / "run/clones").iterdir())
