"""Peer: a container under gVisor's runsc, on the image's own root file system."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench.containers import runtime
from bench.peer import Peer

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from bench.peer import Arena, Start


def _open(arena: Arena) -> AbstractAsyncContextManager[Start]:
    return runtime(arena, "runsc", _command)


def _command(own: Path, bundle: Path, name: str) -> list[str]:
    options = ["--platform=systrap", "--network=none", "--ignore-cgroups"]
    return ["--root", str(own), *options, "run", "--bundle", str(bundle), name]


PEER = Peer(
    name="gVisor",
    summary="runsc run under systrap, without network, on the image's root file system, read-only:"
    " an interpreter started anew, behind a kernel in user space",
    open=_open,
)
