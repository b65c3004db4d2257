"""Peer: the image's guest, warm, from an internal snapshot: `savevm` and `loadvm`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from bench.guest import first_output, running
from bench.peer import Clock, Peer
from bench.saving import execute, saved, snapshotted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.peer import Arena, Phases, Start


@contextlib.asynccontextmanager
async def _open(arena: Arena) -> AsyncIterator[Start]:
    warm = await saved(arena)

    async def start() -> Phases:
        clock = Clock()
        async with running(arena, "-S", *warm.disk) as guest:
            clock.reached("spawn")
            await snapshotted(guest, "snapshot-load", "disk")
            clock.reached("load")
            await execute(guest, "cont")
            await first_output(guest.agent, warm.key, clock)
        return clock.phases

    yield start


PEER = Peer(
    name="QEMU, loadvm",
    summary="a warm guest of the same image, saved by savevm in a qcow2, loaded by loadvm into a"
    " new QEMU: no identity of its own",
    open=_open,
)
