"""What was saved stays whole on a host that cannot run it, and runs again on one that can."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fake_host import OWNER, add_template, opened, wanted
from tests.fakes import VERSION, FakeEngine
from vmpool.errors import SnapshotError
from vmpool.lifecycle import OnStop, SandboxState
from vmpool.model import Command, Exited, Processor

if TYPE_CHECKING:
    from vmpool.host import Host


async def left_behind(state: Path) -> tuple[str, str]:
    """Leave a paused sandbox and a checkpoint of it, and return their ids."""
    async with opened(state, FakeEngine()) as host:
        await add_template(host)
        made = await host.create(wanted(), owner=OWNER)
        kept = await host.checkpoint(made.id, owner=OWNER, name="before")
        await host.pause(made.id, owner=OWNER)
        return made.id, kept.id


async def require_whole(host: Host, sandbox: str, kept: str) -> None:
    """Check that a sandbox is paused still, and that what it needs is there."""
    assert (await host.store.sandbox(sandbox)).state is SandboxState.PAUSED
    assert [each.id for each in await host.checkpoints(owner=OWNER, sandbox=None)] == [kept]
    assert len(list((host.settings.state / "checkpoints").iterdir())) == 2


async def require_refused(host: Host, sandbox: str, kept: str, code: str) -> SnapshotError:
    """Check that neither goes on here, and that nothing is lost by the attempt."""
    with pytest.raises(SnapshotError) as raised:
        await host.create(wanted(template="", checkpoint=kept), owner=OWNER)
    assert raised.value.error_code == code
    with pytest.raises(SnapshotError) as raised:
        await host.resume(sandbox, owner=OWNER, timeout=None)
    assert raised.value.error_code == code
    await require_whole(host, sandbox, kept)
    return raised.value


async def require_resumed(state: Path, sandbox: str, kept: str) -> None:
    """Check that it goes on where it can."""
    async with opened(state, FakeEngine()) as host:
        await require_whole(host, sandbox, kept)
        resumed = await host.resume(sandbox, owner=OWNER, timeout=None)
        async with resumed.execute(Command(argv=("true",))) as execution:
            assert [event async for event in execution][-1] == Exited(exit_code=0)
        await host.kill(sandbox, owner=OWNER)


async def test_a_state_of_another_qemu_is_refused_in_words_and_kept(state: Path) -> None:
    sandbox, kept = await left_behind(state)
    async with opened(state, FakeEngine(version="99.0.0")) as host:
        refusal = await require_refused(host, sandbox, kept, "snapshot_unfit")
        assert VERSION in refusal.message
        assert f"runs where QEMU is {VERSION}" in refusal.remedy
    await require_resumed(state, sandbox, kept)


async def test_a_state_of_a_richer_processor_is_refused_and_kept(state: Path) -> None:
    sandbox, kept = await left_behind(state)
    poorer = FakeEngine()
    poorer.offered = Processor(vendor="GenuineIntel", features=frozenset())
    async with opened(state, poorer) as host:
        refusal = await require_refused(host, sandbox, kept, "snapshot_processor_unfit")
        assert "GenuineIntel" in refusal.message
    await require_resumed(state, sandbox, kept)


async def test_a_sandbox_that_runs_outlives_an_upgrade_of_qemu_and_can_be_saved(
    state: Path,
) -> None:
    async with opened(state, FakeEngine(), on_stop=OnStop.KEEP) as host:
        await add_template(host)
        made = await host.create(wanted(), owner=OWNER)
    async with opened(state, FakeEngine(version="99.0.0"), on_stop=OnStop.KEEP) as host:
        async with host.sandboxes(owner=OWNER)[0].execute(Command(argv=("true",))) as execution:
            assert [event async for event in execution][-1] == Exited(exit_code=0)
        kept = await host.checkpoint(made.id, owner=OWNER, name="before")
        with pytest.raises(SnapshotError) as raised:
            await host.rollback(made.id, owner=OWNER, checkpoint=kept.id)
        assert raised.value.error_code == "snapshot_unfit"
        await host.pause(made.id, owner=OWNER)
    await require_resumed(state, made.id, kept.id)
