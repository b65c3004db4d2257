"""Who holds which sandbox and until when, whatever goes wrong meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from contextlib import AsyncExitStack, closing
from typing import TYPE_CHECKING, Any

import pytest

from tests import fake_host, stepping
from tests.fake_host import OWNER, run_request, until, wanted
from tests.fakes import FakeEngine, Faults
from vmpool.errors import (
    CapacityError,
    EngineError,
    GuestError,
    NotFoundError,
    StoreError,
    UnauthorizedError,
    VmpoolError,
)
from vmpool.lifecycle import EndReason, SandboxState
from vmpool.model import Code, Command, Exited
from vmpool.policy import Limits
from vmpool.scope import Role

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from vmpool.host import Host
    from vmpool.sandbox import Sandbox
from vmpool.store import SandboxRow

PANICKED = GuestError("the guest's kernel panicked", code="guest_panicked")
SLEEP = Command(argv=("sleep", "600"))


async def row_of(host: Host, sandbox: Sandbox) -> SandboxRow:
    return await host.store.sandbox(sandbox.id)


async def gone(host: Host) -> None:
    """Return once nothing is held and nothing of a clone is left."""
    await until(lambda: not host.sandboxes(owner=OWNER))
    census = host.catalogue.status("python").census
    assert (census.held, census.dying, census.alive) == (0, 0, 0)
    assert not list((host.settings.run / "clones").iterdir())


async def followed(sandbox: Sandbox, then: Callable[[], object]) -> None:
    """Run something without end and follow it, after `then` once it runs."""
    async with sandbox.execute(SLEEP) as execution:
        then()
        async for _ in execution:
            pass


def break_journal(state: Path) -> None:
    """Have every new row of a sandbox refused from now on."""
    with closing(sqlite3.connect(state / "vmpool.db")) as database:
        database.execute(
            "CREATE TRIGGER full BEFORE INSERT ON sandboxes "
            "BEGIN SELECT RAISE(ABORT, 'as the test wants it'); END"
        )


def break_ends(state: Path) -> None:
    """Have every change of a sandbox's row refused from now on."""
    with closing(sqlite3.connect(state / "vmpool.db")) as database:
        database.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON sandboxes "
            "BEGIN SELECT RAISE(ABORT, 'as the test wants it'); END"
        )


async def test_a_tenant_that_is_removed_meanwhile_gets_no_sandbox(
    host: Host, engine: FakeEngine
) -> None:
    tenant = await host.store.tenants.add("brief", {})
    await host.store.tokens.add("its", Role.USE.scopes, tenant=tenant.id)
    engine.faults = Faults(load_delay=5.0)
    creating = asyncio.create_task(host.create(wanted(), owner=tenant.id))
    await until(lambda: list((host.settings.run / "clones").iterdir()))
    await host.store.tenants.remove("brief")
    with pytest.raises(UnauthorizedError, match="removed meanwhile"):
        await creating
    await gone(host)
    assert await host.store.open_sandboxes() == []


async def test_a_sandbox_is_on_record_from_its_making_to_its_end(host: Host) -> None:
    token, token_row = await host.store.tokens.add("alice", Role.ADMIN.scopes)
    del token
    made = await host.create(wanted(metadata={"k": "v"}), owner=token_row.id)
    row = await row_of(host, made)
    assert (row.state, row.clone_id, row.metadata) == (
        SandboxState.RUNNING,
        made.clone.id,
        {"k": "v"},
    )
    await host.kill(made.id, owner=token_row.id)
    row = await row_of(host, made)
    assert (row.state, row.end_reason) == (SandboxState.ENDED, EndReason.KILLED)
    await host.close()
    audit = await host.store.audit.entries(10)
    assert {(entry.action, entry.tenant_id) for entry in audit if entry.subject == made.id} == {
        ("sandbox.create", token_row.id),
        ("sandbox.kill", token_row.id),
    }


async def test_a_killed_sandbox_has_ended_and_a_strangers_was_never_there(host: Host) -> None:
    _, alice = await host.store.tokens.add("alice", Role.ADMIN.scopes)
    _, bob = await host.store.tokens.add("bob", Role.ADMIN.scopes)
    made = await host.create(wanted(), owner=alice.id)
    for asking in (host.sandbox, host.kill):
        with pytest.raises(NotFoundError) as raised:
            await asking(made.id, owner=bob.id)
        assert raised.value.error_code == "sandbox_not_found"
    killing = asyncio.create_task(host.kill(made.id, owner=alice.id))
    await asyncio.sleep(0)
    for _ in range(2):  # while it is ending, and after
        with pytest.raises(NotFoundError) as raised:
            await host.sandbox(made.id, owner=alice.id)
        assert raised.value.error_code == "sandbox_ended"
        assert "killed" in raised.value.message
        await killing
    with pytest.raises(NotFoundError) as raised:
        await host.sandbox(made.id, owner=bob.id)
    assert raised.value.error_code == "sandbox_not_found"


async def test_an_expired_sandbox_ends_by_itself(host: Host) -> None:
    made = await host.create(wanted(timeout=0.2), owner=OWNER)
    await gone(host)
    assert (await row_of(host, made)).end_reason is EndReason.EXPIRED


async def test_a_moved_deadline_is_the_one_that_counts(host: Host) -> None:
    made = await host.create(wanted(timeout=30), owner=OWNER)
    await host.set_timeout(made.id, owner=OWNER, timeout=600)
    assert (await row_of(host, made)).deadline_ns == made.deadline_ns
    other = await host.create(wanted(), owner=OWNER)
    await host.set_timeout(other.id, owner=OWNER, timeout=0.01)
    await until(lambda: other not in host.sandboxes(owner=OWNER))
    assert await host.sandbox(made.id, owner=OWNER) is made
    with pytest.raises(NotFoundError) as raised:
        await host.set_timeout(other.id, owner=OWNER, timeout=600)
    assert raised.value.error_code == "sandbox_ended"
    assert other.end_reason is EndReason.EXPIRED


async def test_a_crash_is_told_by_its_cause_to_who_was_running_something(
    host: Host, engine: FakeEngine
) -> None:
    engine.faults = Faults(death=PANICKED)
    made = await host.create(wanted(), owner=OWNER)
    with pytest.raises(GuestError) as raised:
        await followed(made, lambda: os.kill(made.clone.machine.pid, signal.SIGKILL))
    assert raised.value.error_code == "guest_panicked"
    await gone(host)
    assert (await row_of(host, made)).end_reason is EndReason.CRASHED
    assert b'vmpool_guest_failures_total{code="guest_panicked"} 1.0' in host.metrics.render()
    with pytest.raises(NotFoundError):
        made.agent  # noqa: B018 - raises


async def test_a_file_operation_in_flight_is_told_the_cause_as_well(
    host: Host, engine: FakeEngine
) -> None:
    engine.faults = Faults(death=PANICKED)
    made = await host.create(wanted(), owner=OWNER)
    os.kill(made.clone.machine.pid, signal.SIGKILL)
    with pytest.raises(GuestError) as raised:
        async with made.attended() as agent:
            await agent.stat("/", user="user")
    assert raised.value.error_code == "guest_panicked"
    await gone(host)


async def test_who_runs_something_in_a_sandbox_that_its_owner_kills_is_told(host: Host) -> None:
    made = await host.create(wanted(), owner=OWNER)
    killing: list[asyncio.Task[None]] = []
    kill = host.kill(made.id, owner=OWNER)
    with pytest.raises(NotFoundError) as raised:
        await followed(made, lambda: killing.append(asyncio.ensure_future(kill)))
    assert raised.value.error_code == "sandbox_ended"
    await killing[0]


async def test_a_sandbox_that_the_journal_does_not_take_is_killed(host: Host, state: Path) -> None:
    break_journal(state)
    with pytest.raises(StoreError, match="as the test wants it"):
        await host.create(wanted(), owner=OWNER)
    await gone(host)


async def test_an_end_that_the_journal_does_not_take_frees_the_machine_all_the_same(
    host: Host, state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = await host.create(wanted(), owner=OWNER)
    break_ends(state)
    await host.kill(made.id, owner=OWNER)
    await gone(host)
    assert "the journal does not know" in caplog.text


async def test_an_end_that_the_journal_does_not_take_makes_room_on_the_disk_all_the_same(
    host: Host, state: Path
) -> None:
    made = await host.create(wanted(), owner=OWNER)
    await host.pause(made.id, owner=OWNER)
    break_ends(state)
    assert list((state / "checkpoints").iterdir())
    await host.kill(made.id, owner=OWNER)
    assert not list((state / "checkpoints").iterdir())


async def test_a_machine_that_cannot_be_killed_does_not_leave_its_row_open(
    host: Host, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.faults = Faults(kill=EngineError("it does not end", code="process_stuck"))
    made = await host.create(wanted(), owner=OWNER)
    await host.kill(made.id, owner=OWNER)
    assert (await row_of(host, made)).end_reason is EndReason.KILLED
    assert host.catalogue.status("python").census.alive == 0
    assert "it does not end" in caplog.text


@pytest.mark.parametrize("insistence", stepping.Insistence)
async def test_a_create_cancelled_at_any_step_leaves_nothing(
    host: Host, insistence: stepping.Insistence
) -> None:
    places, made = await stepping.places(host.create(wanted(), owner=OWNER))
    await host.kill(made.id, owner=OWNER)
    assert any("/vmpool/pool.py" in at for place in places for at in place)  # the hand-over
    assert any("/vmpool/journal.py" in at for place in places for at in place)
    for place in places:
        made = await stepping.cancel_at(place, host.create(wanted(), owner=OWNER), insistence)
        if made is not None:
            await host.kill(made.id, owner=OWNER)
        await gone_but_for_spares(host)
        assert not await host.store.open_sandboxes(), place


async def gone_but_for_spares(host: Host) -> None:
    """Return once nothing is held; a restore that lost its caller may be on its way."""
    clones = host.settings.run / "clones"
    await until(
        lambda: (
            not (
                host.sandboxes(owner=OWNER)
                or host.catalogue.status("python").census.alive
                or any(clones.iterdir())
            )
        )
    )


async def test_closing_kills_all_and_says_so(host: Host) -> None:
    made = [await host.create(wanted(), owner=OWNER) for _ in range(3)]
    async with made[0].execute(SLEEP):
        await host.close()
    await gone(host)
    for sandbox in made:
        assert (await row_of(host, sandbox)).end_reason is EndReason.SERVER_STOPPED
    await host.close()


async def test_a_close_that_is_cancelled_goes_on_to_its_end(host: Host) -> None:
    made = await host.create(wanted(), owner=OWNER)
    closing_it = asyncio.create_task(host.close())
    await asyncio.sleep(0)
    while not closing_it.done():
        closing_it.cancel()
        await asyncio.sleep(0)
    assert closing_it.cancelled()
    assert not host.sandboxes(owner=OWNER)
    assert not list((host.settings.run / "clones").iterdir())
    assert (await row_of(host, made)).end_reason is EndReason.SERVER_STOPPED


async def test_a_host_that_closes_gives_nobody_a_clone_that_outlives_it(
    state: Path, engine: FakeEngine
) -> None:
    async with AsyncExitStack() as closing_it:
        host = await closing_it.enter_async_context(fake_host.opened(state, engine))
        await fake_host.add_template(host, limits=Limits(ready=1))
        made = await host.create(wanted(), owner=OWNER)
        await until(lambda: host.catalogue.status("python").census.ready == 1)
        leaving = asyncio.create_task(closing_it.aclose())
        await asyncio.sleep(0)
        late = asyncio.create_task(_attempt(host.create(wanted(), owner=OWNER)))
        async with asyncio.timeout(30):
            await leaving
        assert not list((state / "run/clones").iterdir())
        assert made.end_reason is EndReason.SERVER_STOPPED
        outcome = await late
        assert (
            isinstance(outcome, CapacityError | StoreError) or outcome.state is SandboxState.ENDED
        )


async def _attempt(work: Coroutine[Any, Any, Any]) -> Any:
    """Return what a call returned or raised."""
    try:
        return await work
    except VmpoolError as err:
        return err


async def test_a_runs_deadline_can_be_moved_though_it_has_no_row(host: Host) -> None:
    running = asyncio.create_task(host.run(run_request(SLEEP), owner=OWNER))
    await until(lambda: host.sandboxes(owner=OWNER))
    (sandbox,) = host.sandboxes(owner=OWNER)
    assert await host.set_timeout(sandbox.id, owner=OWNER, timeout=600) is sandbox
    await host.kill(sandbox.id, owner=OWNER)
    with pytest.raises(NotFoundError) as raised:
        await running
    assert raised.value.error_code == "sandbox_ended"


async def test_an_executions_environment_goes_over_the_sandboxs(host: Host) -> None:
    made = await host.create(wanted(env={"A": "sandbox", "B": "sandbox"}), owner=OWNER)
    source = "import os, sys; sys.exit([os.environ['A'], os.environ['B']] != ['sandbox', 'mine'])"
    async with made.execute(Code(source=source, env={"B": "mine"})) as execution:
        events = [event async for event in execution]
    assert events[-1] == Exited(exit_code=0)


async def test_a_run_that_fails_or_is_cancelled_is_on_the_audit_log(host: Host) -> None:
    refused = run_request(Command(argv=("no-such-program",)))
    with pytest.raises(VmpoolError):
        await host.run(refused, owner=OWNER)
    await gone(host)
    running = asyncio.create_task(host.run(run_request(SLEEP), owner=OWNER))
    await until(lambda: host.sandboxes(owner=OWNER))
    running.cancel()
    await asyncio.wait({running})
    await host.close()
    outcomes = [
        entry.outcome for entry in await host.store.audit.entries(10) if entry.action == "run"
    ]
    assert outcomes == ["cancelled", "program_not_found"]


async def test_audit_entries_that_the_journal_cannot_follow_are_bounded(
    host: Host, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmpool.auditing.WAITING", 3)
    for number in range(5):
        host.audit(OWNER, "x", str(number), {})
    await host.close()
    assert [
        entry.subject for entry in await host.store.audit.entries(10) if entry.action == "x"
    ] == [
        "2",
        "1",
        "0",
    ]
    assert caplog.text.count("audit log is behind") == 2
    host.audit(OWNER, "x", "later", {})
    await host.close()
    assert (await host.store.audit.entries(1))[0].subject == "later"
