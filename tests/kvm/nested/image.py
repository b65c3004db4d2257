"""Image: the two images of a nested run, built by the project's own builder.

The host is what the machine boots. The guest is what the ring's templates are made of: it is built
out here, because the host in the machine has neither the time nor a network.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from tests.kvm.nested import wheels
from tests.kvm.nested.place import GUEST, GUEST_VARIABLE, ROOT, cache
from vmpool.agent.archive import archive_bytes
from vmpool.errors import ImageError
from vmpool.image import Freshness, Image, Library, recipe, work

if TYPE_CHECKING:
    from collections.abc import Callable

    from vmpool.image import Step

HOST = ROOT / "tests/kvm/host"
"""The recipe's directory."""


async def build_guest(progress: Callable[[Step], None]) -> Image:
    """Return the image of the ring's guests, built unless it is kept, or carried in.

    Fixtures of the ring call this as well, so that the ring runs on its own.

    Raises:
        HostError, ImageError, DiskFullError: As `Library.build`.
        NotFoundError: The image that was to be carried in is not there.
    """
    library = Library(cache())
    if carried := os.environ.get(GUEST_VARIABLE):
        return library.load(carried)
    wanted = recipe.load(recipe.find(GUEST, ()))
    return await library.build(wanted, agent=archive_bytes(), progress=progress)


async def build_host(progress: Callable[[Step], None]) -> Image:
    """Return the image of the host, built unless it is kept.

    What stands in the agent's place is `init.py`: the machine's process 1.

    Raises:
        HostError, ImageError, DiskFullError: As `Library.build`.
        subprocess.CalledProcessError: pip failed.
    """
    async with work.workspace(cache() / "nested/work") as at:
        needed = wheels.read_requirements((ROOT / "pyproject.toml").read_bytes())
        layer = await asyncio.to_thread(
            wheels.layer, needed, kept=cache() / "nested/wheels", work=at
        )
    wanted = recipe.load(HOST)
    wanted = replace(wanted, directories=(*wanted.directories, layer))
    build = partial(
        Library(cache()).build,
        wanted,
        agent=(HOST / "init.py").read_bytes(),
        progress=progress,
    )
    built = await build()
    if not has_its_modules(built):
        # The kernel of all images is older or newer than the modules in this one.
        built = await build(freshness=Freshness.REFRESHED)
    if not has_its_modules(built):
        raise ImageError(
            f"the host's image has no modules of its kernel {built.manifest.kernel_release}",
            code="kernel_unfit",
        )
    return built


def has_its_modules(built: Image) -> bool:
    """Whether the image's root has the modules of the kernel that it is booted with."""
    return f"linux-image-{built.manifest.kernel_release}" in built.manifest.packages
