"""A list of kept processes is a hostile guest's, and has limits."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from vmpool.agent.processes import Processes
from vmpool.errors import GuestError
from vmpool_agent import wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Scripted:
    """A link to a guest that says one thing again and again."""

    def __init__(self, message: dict[str, object]) -> None:
        self._document = json.dumps(message).encode()
        self.told = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Scripted]:
        yield self

    async def send_message(self, _: dict[str, object]) -> None:
        pass

    async def receive(self) -> wire.Message:
        self.told += 1
        return wire.Message(1, self._document, 0)


PROCESS: dict[str, object] = {
    "type": "process", "pid": 2, "argv": [], "env": {}, "user": "user", "started_ns": 0,
    "output_bytes": 0, "backlog_bytes": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "most"),
    [
        ({}, 600),
        ({"argv": ["x" * 60_000]}, 150),
        ({"argv": [""] * 70_000}, 1),
        ({"user": "x" * 70_000}, 1),
        ({"pty": {"rows": 1, "cols": -1}}, 1),
    ],
    ids=["many", "large", "words", "user", "size"],
)
async def test_a_guest_that_lists_without_end_is_given_up(
    more: dict[str, object], most: int
) -> None:
    link = Scripted(PROCESS | more)
    with pytest.raises(GuestError) as raised:
        await Processes(link).list()  # type: ignore[arg-type]
    assert raised.value.error_code == "guest_protocol"
    assert link.told <= most
