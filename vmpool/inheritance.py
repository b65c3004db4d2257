"""Inheritance: what a server that is gone has left on this host, adopted or reaped.

The journal says what was promised, the kernel what is there. A machine of a sandbox that runs, as
the journal has it, is adopted; every other one is reaped: clones that nobody had, children and
predecessors of whom nobody was told, machines of what is paused or ended. A sandbox whose machine
cannot be had back ends, and the audit log says why.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from typing import TYPE_CHECKING

from vmpool import clone, egress
from vmpool.cancellation import uninterrupted
from vmpool.connecting import Connecting
from vmpool.engine import qemu
from vmpool.errors import EngineError, GuestError, StoreError, VmpoolError
from vmpool.lifecycle import EndReason, SandboxState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from vmpool.clone import Clone
    from vmpool.ground import Ground
    from vmpool.host import Host
    from vmpool.snapshot import Snapshot
    from vmpool.store import SandboxRow

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Machines that are adopted at one time: they wait for their guests more than for a processor."""

ADOPTION_TIMEOUT = 30.0
"""Seconds that one may take once its snapshot is found; one that hangs bars no start."""

ACTION = "sandbox.adopt"
"""In the audit log."""


class Inheritance:
    """What was left; looked at once, before this server makes anything.

    Args:
        progress: Told in words what became of what.
    """

    def __init__(self, ground: Ground, *, progress: Callable[[str], None]) -> None:
        self._ground = ground
        self._progress = progress
        self._rows: dict[str, SandboxRow] = {}
        self._directories: list[Path] = []

    @contextlib.asynccontextmanager
    async def surveyed(self, host: Host) -> AsyncIterator[None]:
        """Find out what there is, and keep the snapshots that it runs from for as long as a block.

        Raises:
            StoreError, DiskFullError: The journal cannot be used.
        """
        for row in await self._ground.store.open_sandboxes():
            if row.state is not SandboxState.PAUSED:
                self._rows[row.clone_id] = row
        clones = self._ground.clones
        self._directories = await asyncio.to_thread(lambda: sorted(clones.iterdir()))
        with contextlib.ExitStack() as kept:
            for row in self._rows.values():
                kept.enter_context(host.catalogue.wanted(row.base_id))
            yield

    async def settle(self, host: Host) -> None:
        """Adopt or reap every machine, and end the sandboxes that have none.

        Raises:
            StoreError, DiskFullError: The journal cannot be used.
        """
        turns = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for directory in self._directories:
                group.create_task(self._settle(directory, host, turns))
        found = {directory.name for directory in self._directories}
        for row in self._rows.values():
            if row.clone_id not in found:
                await self._lose(row, host, EngineError("its machine is gone", code="machine_lost"))

    async def _settle(self, directory: Path, host: Host, turns: asyncio.Semaphore) -> None:
        async with turns:
            row = self._rows.get(directory.name)
            if row is None:
                await self._reap(directory)
                return
            try:
                await self._adopt(row, directory, host)
            except StoreError:
                raise
            except VmpoolError as err:
                await self._reap(directory)
                await self._lose(row, host, err)
            except Exception:
                # The task's top: a hostile hypervisor may answer anything, and bars no start.
                log.exception("clone=%s cannot be adopted", directory.name)
                await self._reap(directory)
                why = "it does not answer as a machine does"
                await self._lose(row, host, EngineError(why, code="machine_lost"))

    async def _adopt(self, row: SandboxRow, directory: Path, host: Host) -> None:
        if row.receipt is None:
            raise GuestError("an older vmpool made it", code="clone_unknown")
        if row.ticket:
            raise GuestError("nobody was told of it", code="sandbox_untold")
        # Before its time counts: a large snapshot is checked to its last byte, among many others.
        template = (await host.catalogue.lineage_of_running(row.base_id)).snapshot
        limit = asyncio.timeout(ADOPTION_TIMEOUT)
        try:
            async with limit:
                adopted = await self._found(row, directory, template, host)
        except TimeoutError as err:
            if not limit.expired():
                raise
            raise GuestError(
                f"it was not to be had back within {ADOPTION_TIMEOUT} s", code="guest_unresponsive"
            ) from err
        host.audit(row.owner, ACTION, row.id, {"clone": adopted.id})
        self._progress(f"adopted sandbox {row.id}")

    async def _found(
        self, row: SandboxRow, directory: Path, template: Snapshot, host: Host
    ) -> Clone:
        adopted = await clone.adopt(
            self._ground.engine,
            template,
            directory=directory,
            deadlines=self._ground.deadlines,
            airtime=self._ground.airtime,
        )
        try:
            connecting = Connecting(self._ground.network, self._ground.store)
            await connecting.reconnect(egress.parse(row.network), adopted, owner=row.owner)
            await host.take_over(row, adopted)
        except BaseException:
            await uninterrupted(adopted.release())
            raise
        return adopted

    async def _reap(self, directory: Path) -> None:
        """End and remove a machine that nobody will have."""
        try:
            outlived = await qemu.reap(directory)
        except EngineError as err:
            # Kept for the next start to try again: it says which process that is.
            self._progress(
                f"cannot end a machine of a server that is gone: {directory.name}: {err}"
            )
            log.exception("clone=%s outlived its server and cannot be ended", directory.name)
            return
        if outlived:
            self._progress(f"ended the machine {directory.name} of a server before")
            log.warning("clone=%s outlived its server and was ended", directory.name)
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)

    async def _lose(self, row: SandboxRow, host: Host, why: VmpoolError) -> None:
        """Let the journal say that a sandbox is no more, and why."""
        log.error("sandbox=%s clone=%s is lost: %s", row.id, row.clone_id, why)
        self._progress(f"sandbox {row.id} is lost: {why.message}")
        await self._ground.store.end_sandbox(row.id, EndReason.SERVER_LOST)
        detail = {"clone": row.clone_id, "why": why.message}
        host.audit(row.owner, ACTION, row.id, detail, outcome=why.error_code)
