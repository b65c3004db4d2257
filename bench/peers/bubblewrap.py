"""Peer: namespaces by bubblewrap, on the image's own root file system."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

from bench.containers import ARGV, root_of
from bench.peer import Peer, UnavailableError, run_line, tried

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.peer import Arena, Phases, Start

PROGRAM = "bwrap"


@contextlib.asynccontextmanager
async def _open(arena: Arena) -> AsyncIterator[Start]:
    if shutil.which(PROGRAM) is None:
        raise UnavailableError(f"{PROGRAM} is not installed")
    root = await root_of(arena)
    mounts = ["--ro-bind", str(root), "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]

    async def start() -> Phases:
        return await run_line([PROGRAM, "--unshare-all", "--die-with-parent", *mounts, *ARGV])

    yield await tried(start)


PEER = Peer(
    name="bubblewrap",
    summary="bwrap --unshare-all on the image's root file system, read-only: an interpreter started"
    " anew, behind the kernel that it shares with the host",
    open=_open,
)
