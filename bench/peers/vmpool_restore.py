"""Peer: vmpool itself with nothing ready: restored from nothing, identified, then asked."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bench.guest import print_line
from bench.peer import Clock, Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.peer import Arena, Phases, Start

NAME = "vmpool, from nothing"


@contextlib.asynccontextmanager
async def _open(arena: Arena) -> AsyncIterator[Start]:
    subject = arena.subject

    async def start() -> Phases:
        clock = Clock()
        restored = await subject.restore(subject.template)
        try:
            clock.reached("ready")
            await restored.activate()
            await print_line(restored.agent, clock)
        finally:
            await restored.kill()
        return clock.phases

    yield start


PEER = Peer(
    name=NAME,
    summary="a clone restored past the pool, from no process to the output, with the identity, the"
    " first run and the rest that a ready clone has behind it",
    open=_open,
)
