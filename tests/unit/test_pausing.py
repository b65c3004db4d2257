"""A sandbox that is paused is files and a row, and comes back from them whatever goes wrong."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.fake_host import OWNER, add_template, opened, wanted
from tests.turns import answers
from vmpool.errors import ConflictError
from vmpool.lifecycle import EndReason, SandboxState

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes import FakeEngine
    from vmpool.host import Host

HOUR_NS = 3600 * 10**9


async def test_a_paused_sandbox_is_files_and_comes_back_as_who_it_was(host: Host) -> None:
    made = await host.create(wanted(env={"A": "1"}), owner=OWNER)
    before = made.receipt
    left = made.left_seconds
    assert await host.pause(made.id, owner=OWNER) is made
    assert made.state is SandboxState.PAUSED
    assert host.catalogue.status("python").census.alive == 0
    assert not list((host.settings.run / "clones").iterdir())
    row = await host.store.sandbox(made.id)
    assert (row.state, row.checkpoint_id) == (SandboxState.PAUSED, row.checkpoint_id)
    assert [path.name for path in (host.settings.state / "checkpoints").iterdir()] == [
        row.checkpoint_id
    ]
    with pytest.raises(ConflictError, match="is paused"):
        await answers(made)
    await host.pause(made.id, owner=OWNER)
    assert await host.resume(made.id, owner=OWNER, timeout=None) is made
    assert (made.receipt.hostname, made.receipt.machine_id) == (before.hostname, before.machine_id)
    assert left - 60 < made.left_seconds <= left
    assert not list((host.settings.state / "checkpoints").iterdir())
    await answers(made)
    await host.kill(made.id, owner=OWNER)
    assert host.catalogue.status("python").census.alive == 0


async def test_a_paused_sandbox_that_nobody_was_told_of_is_not_had_back(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine) as host:
        await add_template(host)
        told = await host.create(wanted(), owner=OWNER)
        untold = await host.create(wanted(ticket=b"of a request"), owner=OWNER)
        for made in (told, untold):
            await host.pause(made.id, owner=OWNER)
    async with opened(state, engine) as host:
        assert [each.id for each in host.sandboxes(owner=OWNER)] == [told.id]
        assert (await host.store.sandbox(untold.id)).end_reason is EndReason.SERVER_LOST
        kept = (await host.store.sandbox(told.id)).checkpoint_id
        assert [path.name for path in (state / "checkpoints").iterdir()] == [kept]
        assert host._vault._known.keys() == {kept}


async def test_a_deadline_that_is_moved_while_it_is_resumed_is_the_one_that_counts(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await host.create(wanted(), owner=OWNER)
    await host.pause(made.id, owner=OWNER)
    resume = host.store.checkpoints.resume
    moving = []

    async def resumed(*arguments: Any, **named: Any) -> None:
        moving.append(asyncio.create_task(host.set_timeout(made.id, owner=OWNER, timeout=5000)))
        await asyncio.sleep(0)
        await resume(*arguments, **named)

    monkeypatch.setattr(host.store.checkpoints, "resume", resumed)
    await host.resume(made.id, owner=OWNER, timeout=60)
    await moving[0]
    assert 4900 < made.left_seconds <= 5000
    assert (await host.store.sandbox(made.id)).deadline_ns == made.deadline_ns


async def test_a_paused_sandbox_says_when_it_would_end_if_it_were_resumed_now(host: Host) -> None:
    made = await host.create(wanted(), owner=OWNER)
    assert made.expires_ns == made.deadline_ns
    await host.pause(made.id, owner=OWNER)
    assert made.paused_ns is not None
    made.paused_ns -= HOUR_NS
    made.deadline_ns -= HOUR_NS
    assert 500e9 < made.expires_ns - time.time_ns() <= 600e9
    made.deadline_ns = made.paused_ns - 1  # its time was up when it was paused
    assert 500e9 < made.expires_ns - time.time_ns() <= 600e9
