"""Peer: the image booted by QEMU from power-on."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bench.guest import PROGRAM, booting, first_output, running
from bench.peer import Clock, Peer
from vmpool.agent import new_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.peer import Arena, Phases, Start


@contextlib.asynccontextmanager
async def _open(arena: Arena) -> AsyncIterator[Start]:
    async def start() -> Phases:
        clock = Clock()
        async with running(arena, *booting(arena.subject)) as guest:
            clock.reached("spawn")
            await first_output(guest.agent, new_key(), clock, PROGRAM)
        return clock.phases

    yield start


PEER = Peer(
    name="QEMU, cold boot",
    summary="the image booted by the same QEMU and kernel, to the output of a python3 that starts"
    " as soon as the agent answers",
    open=_open,
)
