"""Opening: how a host comes up, and in which order it goes down.

One server a state directory. What a killed server left is settled before anything new begins:
half-written snapshots and builds are swept, machines adopted or reaped, and rows that promise what
is gone are ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmpool import descriptors, snapshot, tenure
from vmpool.agent import Airtime
from vmpool.catalogue import Catalogue
from vmpool.clone import Dawn, RestoreDeadlines
from vmpool.engine import Engine, qemu
from vmpool.engine.qemu import detection
from vmpool.engine.qemu.probe import query_version
from vmpool.ground import Ground
from vmpool.host import Host, HostFacts
from vmpool.image import Library
from vmpool.inheritance import Inheritance
from vmpool.metrics import Metrics
from vmpool.network.network import Network
from vmpool.quotas import Quotas
from vmpool.standby import Standby
from vmpool.store import Store
from vmpool.tools import QEMU
from vmpool.trust import Custody, Keyring
from vmpool.vault import Vault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from vmpool.config import Settings
    from vmpool.engine.qemu.isolation import Isolation

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What starts machines on this host, and what it found out about the host."""

    engine: Engine
    facts: HostFacts


@contextlib.asynccontextmanager
async def open_host(
    settings: Settings, *, progress: Callable[[str], None], base: Base | None = None
) -> AsyncIterator[Host]:
    """Open a host on `settings.state`; leaving the block
    kills what runs, or leaves it to the next one.

    Args:
        progress: Told each step in words.
        base: What starts machines; QEMU as this host can run it when `None`.

    Raises:
        ConflictError: `state_in_use`: another server runs on these directories.
        HostError: QEMU or the directories (`state_unwritable`) are not fit, or this process may
            have too few open files (`descriptors_few`).
        DiskFullError: There is no room for the directories or the journal.
        StoreError: The journal cannot be used.
    """
    descriptors.raise_limit()
    clones, snapshots = settings.run / "clones", settings.state / "snapshots"
    checkpoints = settings.state / "checkpoints"
    async with contextlib.AsyncExitStack() as opened:
        places = (settings.state, settings.run, clones, snapshots, checkpoints)
        await asyncio.to_thread(_make_directories, *places)
        for directory in (settings.state, settings.run):
            await opened.enter_async_context(tenure.held(directory))
        images = Library(settings.state)
        await asyncio.to_thread(_sweep, snapshots, images)
        store = await opened.enter_async_context(Store(settings.state / "vmpool.db"))
        bases = await store.bases()
        await store.prune()
        custody = await _custody(settings.state, store, progress)
        if base is None:
            base = await find_base(progress)
            opened.callback(base.engine.close)
        metrics = Metrics()
        quotas = Quotas(settings.tenants.quota, store.tenants.quotas, metrics)
        network = await opened.enter_async_context(_network(settings, metrics))
        ground = Ground(
            engine=base.engine,
            accelerator=base.facts.accelerator,
            transport=base.facts.transport,
            images=images,
            store=store,
            metrics=metrics,
            quotas=quotas,
            snapshots=snapshots,
            clones=clones,
            settings=settings,
            deadlines=_deadlines(settings),
            custody=custody,
            restores=asyncio.Semaphore(max(2, os.cpu_count() or 1)),
            dawn=Dawn(at_once=max(1, (os.cpu_count() or 1) // 2)),
            airtime=Airtime.under(base.facts.accelerator),
            standby=await opened.enter_async_context(_standby(base.engine, clones, metrics)),
            network=network,
        )
        catalogue = Catalogue(ground)
        vault = Vault(checkpoints, store, quotas, custody)
        await vault.open()
        host = Host(ground, facts=base.facts, catalogue=catalogue, vault=vault)
        # Closed in the other order: first nobody gets a clone any more, then those who have one.
        opened.push_async_callback(host.close)
        opened.push_async_callback(catalogue.close)
        await _settle(host, ground, progress)
        for id in bases:  # of what ended as its server did, or was lost with it
            await catalogue.release_base(id)
        yield host


@contextlib.asynccontextmanager
async def _network(settings: Settings, metrics: Metrics) -> AsyncIterator[Network]:
    network = Network(settings.state, settings.network, on_denial=metrics.network_denied)
    metrics.watch_network(lambda: network.tally)
    try:
        yield network
    finally:
        await network.close()


@contextlib.asynccontextmanager
async def _standby(engine: Engine, run: Path, metrics: Metrics) -> AsyncIterator[Standby]:
    standby = Standby(engine, run=run)
    metrics.watch_standby(lambda: standby.waiting, lambda: standby.counters)
    try:
        yield standby
    finally:
        await standby.close()


async def _settle(host: Host, ground: Ground, progress: Callable[[str], None]) -> None:
    """Know, adopt or reap what the server before this one has left."""
    await host.recall()
    inheritance = Inheritance(ground, progress=progress)
    async with inheritance.surveyed(host):
        await host.catalogue.restore_saved(progress=progress)
        await inheritance.settle(host)
    await ground.network.reap()
    await ground.network.begin()


async def find_base(progress: Callable[[str], None]) -> Base:
    """Find out what this host can do, by doing it, and return QEMU for it.

    Raises:
        HostError: QEMU is missing, too old or not fit, or cannot be isolated here.
    """
    progress("probing QEMU and its accelerators")
    binary = os.fspath(QEMU.find() or QEMU.name)
    version = await query_version(binary)
    isolation = await asyncio.to_thread(_isolated, binary, version)
    probe = await qemu.probe_accelerator(binary, isolation)
    facts = HostFacts(
        accelerator=probe.accelerator,
        accelerator_reason=probe.reason,
        transport=await asyncio.to_thread(qemu.probe_transport),
        qemu_version=version,
    )
    engine = qemu.QemuEngine(binary=binary, version=version, isolation=isolation)
    return Base(engine=engine, facts=facts)


async def _custody(state: Path, store: Store, progress: Callable[[str], None]) -> Custody:
    """Return what says which snapshots to believe; a host that had no key signs what it made.

    That is what its journal names. A key that was made and not finished with is gone on with.

    Raises:
        HostError: `host_key_unusable`.
        StoreError, DiskFullError: The journal, or the disk, cannot be used.
        SnapshotError: `snapshot_unsaved`; a signature cannot be written.
    """
    keyring = await asyncio.to_thread(Keyring.open, state)
    custody = Custody(keyring)
    if not await asyncio.to_thread(keyring.is_settled):
        kept = await store.checkpoints.all()
        bases = {row.snapshot_id for row in await store.templates()} | await store.bases()
        bases |= {row.base_id for row in kept}
        named = [state / "snapshots" / id for id in sorted(bases)]
        named += [state / "checkpoints" / row.id for row in kept]
        for why in await asyncio.to_thread(custody.adopt, named):
            log.error("not signed: %s", why)
        await asyncio.to_thread(keyring.settle)
        progress(f"made a key for this host: {keyring.own.public}")
    return custody


def _isolated(binary: str, version: str) -> Isolation:
    """Return what QEMUs are started with; what they are not is logged."""
    isolated = detection.limited(detection.detect(binary, version))
    for lack in isolated.lacks:
        log.warning("QEMU runs without its wall %r: %s", lack.wall.value, lack.why)
    return isolated


def _deadlines(settings: Settings) -> RestoreDeadlines:
    given = settings.deadlines
    return RestoreDeadlines(
        hello=given.hello, identify=given.identify, warm=given.warm, activate=given.activate
    )


def _sweep(snapshots: Path, images: Library) -> None:
    """Remove what a server that was killed had half written."""
    for left in snapshot.sweep(snapshots):
        log.warning("removed a half-written snapshot %s", left.name)
    images.sweep()


def _make_directories(*directories: Path) -> None:
    for directory in directories:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as err:
            raise tenure.unusable(directory, err) from err
