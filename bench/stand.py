"""Stand: the product opened for measuring, and the subjects that are measured on it.

The host, the server and the client are the real ones, in this process, on a state directory that
no server uses at the time. The stand leaves that directory as it found it: its templates are its
own, named so that nobody's are touched, and are removed in the end.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import aiohttp

from vmpool import clone, snapshot
from vmpool.catalogue import TemplateRequest, TemplateState
from vmpool.cli.listening import bound
from vmpool.cli.running import served
from vmpool.clone import RestoreDeadlines
from vmpool.config import Address
from vmpool.engine import Engine, qemu
from vmpool.errors import VmpoolError
from vmpool.host import Host, HostFacts
from vmpool.image import Image
from vmpool.model import GIB, MIB
from vmpool.opening import Base, open_host
from vmpool.policy import Limits
from vmpool.snapshot import Snapshot
from vmpool.tools import QEMU

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection
    from pathlib import Path

    from vmpool.clone import Clone
    from vmpool.config import Settings
    from vmpool.model import MachineSpec
    from vmpool.pool import Pool

PREFIX = "vmpool-bench-"
"""What the names of the stand's own templates begin with."""

SMALL_BYTES = 256 * MIB
LARGE_BYTES = 2 * GIB
"""The sizes between which the time of a restore is compared."""

LOOPBACK = Address(host="127.0.0.1", port=0)

EMPTY = Limits(ready=0)
"""A pool that restores nothing by itself; also what a killed benchmark leaves in the journal."""

ANSWER_TIMEOUT = 30.0
"""Seconds that a request may take, all in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """The product, opened.

    Attributes:
        engine: The same that the host restores with.
        client: Its base URL and its token are the server's.
    """

    host: Host
    engine: Engine
    client: aiohttp.ClientSession

    @property
    def clones(self) -> Path:
        """Directory that clones' directories are made in."""
        return self.host.settings.run / "clones"

    @property
    def deadlines(self) -> RestoreDeadlines:
        """When a restore is given up: as the host does."""
        given = self.host.settings.deadlines
        return RestoreDeadlines(
            hello=given.hello, identify=given.identify, warm=given.warm, activate=given.activate
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One of the stand's own templates."""

    name: str
    snapshot: Snapshot

    @property
    def memory_bytes(self) -> int:
        """RAM of its clones."""
        return self.snapshot.spec.memory_bytes

    @property
    def size(self) -> str:
        """RAM of its clones, in words."""
        gibibytes, rest = divmod(self.memory_bytes, GIB)
        return f"{self.memory_bytes // MIB} MiB" if rest else f"{gibibytes} GiB"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One image on the stand, with a template for each size of memory.

    Attributes:
        template: Of the size that the image's recipe asks for.
        templates: All of them by size, `template` and those that are compared.
        unmade: Why there is no template of a size.
    """

    stand: Stand
    image: Image
    template: Template
    templates: tuple[Template, ...]
    unmade: dict[int, VmpoolError]

    @property
    def spec(self) -> MachineSpec:
        """The machine that most is measured on."""
        return self.template.snapshot.spec

    @property
    def pool(self) -> Pool[Clone]:
        """The pool of `template`; it keeps nothing ready unless it is resized."""
        return self.stand.host.catalogue.pool(self.template.name)

    def sized(self, memory_bytes: int) -> Template:
        """Return the template of a size that was asked for.

        Raises:
            VmpoolError: It could not be made; this is why.
        """
        if memory_bytes in self.unmade:
            raise self.unmade[memory_bytes]
        return next(one for one in self.templates if one.memory_bytes == memory_bytes)

    async def restore(self, template: Template) -> Clone:
        """Restore a clone from nothing, past the pool; the caller kills it.

        Raises:
            VmpoolError: As `clone.restore`.
        """
        stand = self.stand
        return await clone.restore(
            stand.engine, template.snapshot, run=stand.clones, deadlines=stand.deadlines
        )


@contextlib.asynccontextmanager
async def open_stand(
    settings: Settings, *, progress: Callable[[str], None]
) -> AsyncIterator[Stand]:
    """Open host, server and client on `settings.state`; leaving the block kills what they started.

    Raises:
        ConflictError: `state_in_use`: a server runs on this state directory.
        VmpoolError: As `open_host`.
    """
    base = await _base(progress)
    async with contextlib.AsyncExitStack() as opened:
        host = await opened.enter_async_context(open_host(settings, progress=progress, base=base))
        await _quieten(host, progress)
        listener = opened.enter_context(bound(LOOPBACK))
        endpoint = await opened.enter_async_context(served(host, listener))
        session = aiohttp.ClientSession(
            endpoint.url,
            headers={"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else {},
            timeout=aiohttp.ClientTimeout(total=ANSWER_TIMEOUT),
        )
        client = await opened.enter_async_context(session)
        yield Stand(host=host, engine=base.engine, client=client)


@contextlib.asynccontextmanager
async def open_subject(
    stand: Stand, image: Image, *, sizes: Collection[int], progress: Callable[[str], None]
) -> AsyncIterator[Subject]:
    """Make an image's templates for the time of the block; snapshots that exist are used.

    Args:
        sizes: Of memory, beside the one of the image's recipe. One that cannot be made, because
            the image needs more, say, is left out.

    Raises:
        VmpoolError: As `Catalogue.add`, for the size of the recipe.
    """
    usual = image.defaults.memory_bytes
    templates: dict[int, Template] = {}
    unmade: dict[int, VmpoolError] = {}
    async with contextlib.AsyncExitStack() as made:
        for memory_bytes in sorted({usual, *sizes}):
            try:
                template = await _template(stand.host, image, memory_bytes, progress)
            except VmpoolError as err:
                if memory_bytes == usual:
                    raise
                unmade[memory_bytes] = err
                continue
            made.push_async_callback(stand.host.catalogue.remove, template.name)
            templates[memory_bytes] = template
        yield Subject(
            stand=stand,
            image=image,
            template=templates[usual],
            templates=tuple(templates.values()),
            unmade=unmade,
        )


async def _base(progress: Callable[[str], None]) -> Base:
    """Find out what this host can do; the engine is needed here to restore past the pool."""
    progress("probing QEMU and its accelerators")
    binary = os.fspath(QEMU.find() or QEMU.name)
    engine = await qemu.QemuEngine.detect(binary=binary)
    probe = await qemu.probe_accelerator(binary, engine.isolation)
    facts = HostFacts(
        accelerator=probe.accelerator,
        accelerator_reason=probe.reason,
        transport=qemu.probe_transport(),
        qemu_version=engine.version,
    )
    return Base(engine=engine, facts=facts)


async def _quieten(host: Host, progress: Callable[[str], None]) -> None:
    """Empty the pools of the templates that were here before; the journal keeps their limits."""
    for status in host.catalogue.statuses:
        progress(f"emptying the pool of template {status.name}")
        known = await host.catalogue.settled(status.name)
        if status.name.startswith(PREFIX):  # a benchmark was killed
            await host.catalogue.remove(status.name)
        elif known.state is TemplateState.READY:
            pool = host.catalogue.pool(status.name)
            pool.resize(replace(pool.limits, ready=0))


async def _template(
    host: Host, image: Image, memory_bytes: int, progress: Callable[[str], None]
) -> Template:
    mebibytes = memory_bytes // MIB
    progress(f"template of {image.name} with {mebibytes} MiB")
    request = TemplateRequest(
        name=f"{PREFIX}{image.name}-{mebibytes}",
        image=image.digest,
        limits=EMPTY,
        memory_bytes=memory_bytes,
    )
    status = await host.catalogue.add(request, progress=progress)
    assert status.snapshot is not None  # `add` returns when it is ready
    found = snapshot.load(host.settings.state / "snapshots" / status.snapshot)
    return Template(name=status.name, snapshot=found)
