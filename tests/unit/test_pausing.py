"""A sandbox that is paused is files and a row, and comes back from them whatever goes wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fake_host import OWNER, wanted
from tests.turns import answers
from vmpool.errors import ConflictError
from vmpool.lifecycle import SandboxState

if TYPE_CHECKING:
    from vmpool.host import Host


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
