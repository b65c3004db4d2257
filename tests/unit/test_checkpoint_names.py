"""Names of checkpoints: one has each, and which it is outlives the server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fake_host import OWNER, add_template, opened, wanted
from tests.fakes import FakeEngine
from vmpool.errors import InvalidRequestError
from vmpool.host import Host
from vmpool.store import IfTaken


async def names(host: Host) -> dict[str, str | None]:
    return {each.id: each.name for each in await host.checkpoints(owner=OWNER, sandbox=None)}


async def test_a_name_that_moved_has_moved_over_a_restart(state: Path, engine: FakeEngine) -> None:
    async with opened(state, engine) as host:
        await add_template(host)
        made = await host.create(wanted(), owner=OWNER)

        async def kept(name: str | None) -> str:
            keeping = host.checkpoint(made.id, owner=OWNER, name=name, if_taken=IfTaken.MOVE)
            return (await keeping).id

        first, nameless, other = await kept("mine"), await kept(None), await kept("other")
        second = await kept("mine")
        expected = {first: None, nameless: None, other: "other", second: "mine"}
        assert await names(host) == expected
        with pytest.raises(InvalidRequestError, match="is no name"):
            await kept("../mine")
    async with opened(state, engine) as host:
        assert await names(host) == expected
        assert host.find_checkpoint("mine", owner=OWNER).id == second
