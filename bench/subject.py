"""Subject: one image on the stand, with templates of its own that are made and removed here."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.stand import EMPTY, PREFIX, Stand
from vmpool import clone, snapshot
from vmpool.catalogue import TemplateRequest
from vmpool.errors import VmpoolError
from vmpool.image import Image
from vmpool.model import GIB, MIB
from vmpool.snapshot import Snapshot

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection

    from vmpool.clone import Clone, Waiting
    from vmpool.host import Host
    from vmpool.model import MachineSpec
    from vmpool.pool import Pool

SMALL_BYTES = 256 * MIB
LARGE_BYTES = 2 * GIB
"""The sizes between which the time of a restore is compared."""


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
        return await self.restore_into(await self.stand_by(template))

    async def stand_by(self, template: Template) -> Waiting:
        """Start a hypervisor that waits for a state, past what the host keeps; the caller kills it.

        Raises:
            VmpoolError: As `clone.stand_by`.
        """
        stand = self.stand
        return await clone.stand_by(stand.engine, template.snapshot, run=stand.clones)

    async def restore_into(self, waiting: Waiting) -> Clone:
        """Restore a clone into what waits; the caller kills it.

        Raises:
            VmpoolError: As `clone.restore_into`.
        """
        return await clone.restore_into(waiting, deadlines=self.stand.deadlines)


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
