"""Peer: a bare process, which isolates nothing. No start of an interpreter is faster here."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

from bench.line import LINE
from bench.peer import Peer, UnavailableError, run_line, tried

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.peer import Arena, Phases, Start

NAME = "python3 process"
_OF_THE_HOST = "/usr/bin/python3"


@contextlib.asynccontextmanager
async def _open(arena: Arena) -> AsyncIterator[Start]:  # noqa: ARG001 -- the image is of no account
    program = shutil.which(_OF_THE_HOST) or shutil.which("python3")
    if program is None:
        raise UnavailableError("python3 is not installed")

    async def start() -> Phases:
        return await run_line([program, "-c", LINE])

    yield await tried(start)


PEER = Peer(
    name=NAME,
    summary="python3 -c on the host, no isolation at all: the floor",
    open=_open,
)
