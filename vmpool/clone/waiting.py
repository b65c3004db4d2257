"""Waiting: a hypervisor of a template with its directory, that waits for a state.

Any state that descends from the template: its own, a checkpoint, a running clone's. It costs no
CPU. What becomes of it is `restoration`'s and `descent`'s to say.
"""

from __future__ import annotations

import asyncio
import errno
import shutil
from typing import TYPE_CHECKING

from vmpool.cancellation import uninterrupted
from vmpool.clone.timings import Stopwatch
from vmpool.errors import DiskFullError, HostError
from vmpool.model import Attachment, new_id

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.engine import Engine, Shell
    from vmpool.snapshot import Snapshot


class Waiting:
    """A shell with its directory. Made by `stand_by`; whoever holds it calls `kill`.

    Attributes:
        id: The directory's name, and that of the clone that it will be.
        template: What it was prepared for.
        spawn_ns: How long its start took of what whoever has it waited; 0 when it waited for them.
    """

    def __init__(self, *, shell: Shell, template: Snapshot, directory: Path, spawn_ns: int) -> None:
        self.id = directory.name
        self.shell = shell
        self.template = template
        self.directory = directory
        self.spawn_ns = spawn_ns

    async def wait(self) -> int:
        """Return the exit code once the hypervisor has ended, as `Shell.wait`."""
        return await self.shell.wait()

    async def kill(self) -> None:
        """End the hypervisor and remove its directory. *Idempotent*, completes when cancelled.

        Also for one that was given to `descend`, which then comes to nothing.

        Raises:
            EngineError: It does not end; its directory stays.
        """
        await uninterrupted(self._end())

    async def _end(self) -> None:
        # By its directory one that does not end is found again, so that stays as long as it does.
        await self.shell.kill()
        await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)


async def stand_by(engine: Engine, template: Snapshot, *, run: Path) -> Waiting:
    """Start a hypervisor that waits for a state of `template` or of what descends from it.

    On any failure and on cancellation nothing is left.

    Args:
        run: Directory that clones' directories are made in.

    Raises:
        SnapshotError: The template does not fit this host or this vmpool.
        EngineError: The hypervisor failed.
        HostError, DiskFullError: There is no place for its directory.
    """
    watch = Stopwatch()
    directory = claim_directory(run)
    try:
        shell = await engine.prepare(template, Attachment(directory=directory))
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return Waiting(shell=shell, template=template, directory=directory, spawn_ns=watch.lap())


def claim_directory(run: Path) -> Path:
    """Create a directory of a machine's own in `run`; its name is the machine's.

    Raises:
        DiskFullError: The disk is full.
        HostError: `state_unwritable`; the directory cannot be created.
    """
    directory = run / new_id()
    try:
        directory.mkdir(mode=0o700)
    except OSError as err:
        if err.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise DiskFullError("no space for a machine in the run directory") from err
        raise HostError(
            f"cannot make a place for a machine in the run directory: {err.strerror}",
            code="state_unwritable",
        ) from err
    return directory
