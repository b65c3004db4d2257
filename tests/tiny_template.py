"""Tiny templates: snapshots of tiny guests, made by a real engine in a fraction of a second."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from typing import TYPE_CHECKING

from tests import tiny_guest, watch
from vmpool import snapshot
from vmpool.model import Attachment

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vmpool.engine.qemu import QemuEngine
    from vmpool.model import MachineSpec
    from vmpool.snapshot import Snapshot

BOOT_TIMEOUT = 40.0
"""Seconds; half a one under emulation, but up to 15 on a KVM that interprets firmware."""


@contextlib.contextmanager
def attachment(run: Path) -> Iterator[Attachment]:
    """Yield a machine's place in `run`, which is removed at the end."""
    directory = run / secrets.token_hex(10)
    directory.mkdir(mode=0o700)
    try:
        yield Attachment(directory=directory)
    finally:
        shutil.rmtree(directory)


async def make(
    engine: QemuEngine, spec: MachineSpec, code: bytes, *, run: Path, snapshots: Path
) -> Snapshot:
    """Boot the guest `code` and publish its snapshot in `snapshots`.

    Args:
        run: Directory that the machine's directory is made in; short, for it holds sockets.

    Raises:
        TimeoutError: The guest does not come up.
        EngineError: The hypervisor failed.
    """
    kernel = tiny_guest.kernel(snapshots, code)
    async with contextlib.AsyncExitStack() as undo:
        at = undo.enter_context(attachment(run))
        machine = await engine.boot(spec, kernel, at)
        undo.push_async_callback(machine.kill)
        await watch.holds(at.directory / "console", tiny_guest.UP, BOOT_TIMEOUT)
        await machine.pause()
        processor = await machine.processor()
        partial = snapshot.begin(snapshots)
        undo.callback(shutil.rmtree, partial, ignore_errors=True)
        await machine.save(partial)
        manifest = snapshot.describe(
            partial,
            id=secrets.token_hex(10),
            image="none",
            spec=spec,
            processor=processor,
            created_ns=1,
        )
        return snapshot.publish(partial, manifest, snapshots)
    raise AssertionError("unreachable: the stack swallows nothing")
