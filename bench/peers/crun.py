"""Peer: a container under crun, on the image's own root file system."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import DEVNULL, PIPE
from pathlib import Path
from typing import TYPE_CHECKING

from bench.containers import runtime
from bench.peer import Peer, UnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.peer import Arena, Start

_UNIFIED = Path("/sys/fs/cgroup/unified")


@contextlib.asynccontextmanager
async def _open(arena: Arena) -> AsyncIterator[Start]:
    async with contextlib.AsyncExitStack() as opened:
        prefix: list[str] = []
        if await asyncio.to_thread(_is_hybrid):
            prefix = await opened.enter_async_context(_without_unified())
        yield await opened.enter_async_context(runtime(arena, "crun", _command, prefix=prefix))


def _command(own: Path, bundle: Path, name: str) -> list[str]:
    return ["--root", str(own), "run", "--bundle", str(bundle), name]


def _is_hybrid() -> bool:
    """Tell whether both versions of cgroups have controllers: crun refuses to run then."""
    try:
        return bool((_UNIFIED / "cgroup.controllers").read_text().strip())
    except OSError:
        return False


@contextlib.asynccontextmanager
async def _without_unified() -> AsyncIterator[list[str]]:
    """Yield what puts a program into a view of the host that has version 1 alone: nsenter."""
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", "sh", "-c", f"umount {_UNIFIED} && echo && exec cat"),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
    )
    try:
        assert process.stdout is not None
        if not await process.stdout.readline():
            raise UnavailableError("both versions of cgroups have controllers")
        yield ["nsenter", f"--mount=/proc/{process.pid}/ns/mnt", "--"]
    finally:
        assert process.stdin is not None
        process.stdin.close()  # and so it ends
        await process.communicate()


PEER = Peer(
    name="crun",
    summary="crun run with its default bundle and the image's root file system, read-only: an"
    " interpreter started anew, behind the kernel that it shares with the host",
    open=_open,
)
