"""Adoption: a machine whose manager is gone, held by another from now on.

The process is found by its record. All else it is asked itself: what the dead manager had begun and
not ended, nobody wrote down. Whatever goes wrong, the process is left as it was found; whether it
is reaped then is its finder's to decide.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from vmpool.engine.qemu import command, hypervisor, migration, orphan, record
from vmpool.engine.qemu.command import Instance
from vmpool.engine.qemu.handover import AGENT_SOCKET
from vmpool.engine.qemu.layers import Layers
from vmpool.engine.qemu.machine import QemuMachine
from vmpool.errors import EngineError
from vmpool.model import SerialAddress, VsockAddress

if TYPE_CHECKING:
    from vmpool.engine.qemu.hypervisor import Hypervisor
    from vmpool.engine.qemu.record import Record
    from vmpool.engine.qemu.room import Shared
    from vmpool.model import AgentAddress, Attachment
    from vmpool.snapshot import Snapshot

TIMEOUT = 10.0
"""Seconds within which a QEMU must answer its new manager; it takes a few milliseconds."""


async def adopt(binary: str, template: Snapshot, at: Attachment, shared: Shared) -> QemuMachine:
    """Take over the machine in `at.directory`, as `Engine.adopt`.

    Args:
        binary: The program, as it was started, for the machine's errors.
        shared: With the engine's other machines.
    """
    found = await asyncio.to_thread(record.read, at.directory)
    if found is None:
        raise _lost("there is no record of it")
    if replace(found.spec, root=template.spec.root) != template.spec:
        raise _lost(f"it is none of template {template.manifest.id!r}")
    process = orphan.hold(found)
    if process is None:
        raise _lost("its process is gone")
    argv = (binary, *command.restore(found.spec, Instance(name=at.directory.name, cid=found.cid)))
    try:
        started = await hypervisor.rejoin(
            process, argv=argv, directory=at.directory, deadline=TIMEOUT
        )
    except EngineError as err:
        raise _lost(err.message) from err
    try:
        return await _settled(started, found, template, at, shared)
    except BaseException as err:
        await started.release()
        if isinstance(err, EngineError):
            raise _lost(err.message) from err
        raise


async def _settled(
    started: Hypervisor, found: Record, template: Snapshot, at: Attachment, shared: Shared
) -> QemuMachine:
    """Undo what the dead manager left half done, and let the machine run."""
    status = await started.execute("query-status")
    if status["status"] == "inmigrate":
        raise EngineError("it waits for a state that was not loaded")
    layers = None
    if template.spec.disk_bytes:
        layers = Layers(started, at.directory, template.spec.disk_bytes)
        await layers.settle()
    await migration.forget(started.monitor)
    if not status["running"]:
        await started.execute("cont")  # stopped to be saved
    return QemuMachine(
        started,
        template.spec,
        at.directory,
        _address(found, at),
        shared=shared,
        template=template,
        layers=layers,
    )


def _address(found: Record, at: Attachment) -> AgentAddress:
    if found.cid is not None:
        return VsockAddress(cid=found.cid)
    return SerialAddress(path=at.directory / AGENT_SOCKET)


def _lost(why: str) -> EngineError:
    return EngineError(f"the machine cannot be reached again: {why}", code="machine_lost")
