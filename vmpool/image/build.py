"""Build: the stages between a recipe or a tarball and an image, each kept for the next time.

    mmdebstrap ─► root archive ─┐
                  agent, warm ──┼─► image
    mmdebstrap ─► kernel ───────┘

Each stage's result is kept under a digest of its inputs, so a changed agent repeats only the last
one, and unchanged inputs need neither time nor network.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import translate
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from vmpool.errors import ImageError, NotFoundError
from vmpool.image import (
    debian,
    erofs,
    furnish,
    initrd,
    kernel,
    manifest,
    shelf,
    signature,
    tarball,
)
from vmpool.image.recipe import Defaults
from vmpool.image.work import Step, full_disk_told, in_thread, shown
from vmpool.trust import Keyring
from vmpool_agent.wire import VERSIONS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vmpool.image.recipe import Recipe, Source
    from vmpool.image.tree import Check, Tree

_ROOT_STAGE, _KERNEL_STAGE, _IMAGE_STAGE = "root 1", "kernel 1", "image 5"
"""Part of the keys: raise a number when its stage gives other results for the same inputs."""

# Quiet, for a console is slow; stop on panic, so that a dead guest is noticed. Freed memory is not
# cleared by the kernel: every page that a clone frees would be one that it shares no longer. The
# agent clears what is free before a snapshot.
_COMMAND_LINE = "console=ttyS0 quiet panic=-1"

_UUID = uuid.UUID("6f6cf1b6-0f0a-4b0c-9d0e-0d3a0c6f2b11")
_RELEASE = "release"


class Freshness(StrEnum):
    """Whether the mirror is asked for what is kept already."""

    KEPT = "kept"
    REFRESHED = "refreshed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Where one build works.

    Attributes:
        cache: Where stages keep their results.
        images: Where images are published.
        work: A directory of this build alone, removed by its owner.
        keyring: Whom to believe that an image was built, and what to sign with.
        progress: Told of every step.
    """

    cache: Path
    images: Path
    work: Path
    keyring: Keyring
    freshness: Freshness
    progress: Callable[[Step], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What an image is made of, beside its root archive and its kernel."""

    name: str
    description: str
    origin: str
    defaults: Defaults
    agent: bytes
    warm: bytes | None = None
    strip: tuple[str, ...] = ()


async def root_archive(recipe: Recipe, bench: Bench) -> Path:
    """Return the tar archive of the recipe's root file system, made unless it is kept.

    Raises:
        HostError: This host cannot build.
        ImageError: As `debian.bootstrap`.
        DiskFullError: The disk is full.
    """
    key = key_of(_ROOT_STAGE, _recipe_inputs(recipe))
    place = bench.cache / "roots" / f"{key}.tar"
    if bench.freshness is Freshness.REFRESHED or not place.exists():
        with shown(bench.progress, f"installing the packages of {recipe.name}"):
            made = bench.work / "root.tar"
            await debian.bootstrap(recipe, made, at=bench.work, progress=bench.progress)
            await in_thread(lambda _: shelf.publish_file(made, place))
    return place


async def kernel_files(source: Source, bench: Bench) -> Path:
    """Return the directory of the kernel and initrd that all images share, made unless kept.

    Raises:
        As `root_archive`.
    """
    inputs = (initrd.script(), *map(str.encode, (*source.lines, *kernel.PACKAGES, *kernel.MODULES)))
    place = bench.cache / "kernels" / key_of(_KERNEL_STAGE, inputs)
    if bench.freshness is Freshness.REFRESHED or not place.exists():
        with shown(bench.progress, "fetching the kernel"):
            archive = bench.work / "kernel.tar"
            await debian.fetch(
                kernel.PACKAGES, source, archive, at=bench.work, progress=bench.progress
            )
            await in_thread(lambda check: _publish_kernel(archive, place, bench.work, check))
    return place


async def image(content: Content, archive: Path, kernel_at: Path, bench: Bench) -> str:
    """Return the digest of the image of these parts: made, published and signed unless it is kept.

    Kept is what somebody has signed whom this host trusts: that a file of the cache names an image
    says nothing of who built it.

    Raises:
        ImageError: The archive is refused, or has no Python for the agent. Or `image_damaged`: what
            lies there already under the image's digest is something else.
        HostError: `keys_unreadable`.
        DiskFullError: The disk is full.
    """
    key = key_of(_IMAGE_STAGE, _image_inputs(content, archive, kernel_at))
    place = bench.cache / "images" / key
    if (kept := await in_thread(lambda _: _kept(place, bench))) is not None:
        return kept
    with shown(bench.progress, f"packing {content.name}"):
        digest = await in_thread(lambda check: _pack(content, archive, kernel_at, bench, check))
        shelf.publish_text(digest, place, at=bench.work)
    return digest


async def unpacked(source: Path, bench: Bench) -> Path:
    """Return `source`, or a decompressed copy in the bench's directory.

    Raises:
        NotFoundError: `image_tarball_missing`.
        ImageError: It is no tar archive of a known compression, or too large.
        DiskFullError: The disk is full.
    """
    target = bench.work / "import.tar"

    def unpack(check: Check) -> Path:
        if not source.is_file():
            raise NotFoundError(f"no file {str(source)!r}", code="image_tarball_missing")
        with full_disk_told(target), target.open("wb") as file:
            compressed = tarball.unpack(source, file, limits=tarball.Limits(), check=check)
        return target if compressed else source

    with shown(bench.progress, f"reading {source.name}"):
        return await in_thread(unpack)


def key_of(stage: str, parts: Iterable[bytes]) -> str:
    """Return the digest of a stage's inputs; no two lists of parts look alike to it."""
    digest = hashlib.sha256(stage.encode())
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def _recipe_inputs(recipe: Recipe) -> Iterable[bytes]:
    yield from map(str.encode, (*recipe.source.lines, "packages", *recipe.packages))
    for directory in recipe.directories:
        yield b"directory"
        script = directory / "setup.sh"
        yield script.read_bytes() if script.exists() else b""
        for path in sorted((directory / "files").rglob("*")):
            yield str(path.relative_to(directory)).encode()
            if path.is_symlink():
                yield b"link " + os.fsencode(path.readlink())
            elif path.is_file():
                yield b"file %o " % (path.stat().st_mode & 0o100) + path.read_bytes()


def _image_inputs(content: Content, archive: Path, kernel_at: Path) -> Iterable[bytes]:
    found = archive.stat()
    # A kept archive never changes: its time and size tell it from one made later.
    yield f"{archive} {found.st_mtime_ns} {found.st_size}".encode()
    for name in (manifest.KERNEL, manifest.INITRD):
        yield manifest.digest(kernel_at / name).encode()
    yield repr(content).encode()
    yield f"{_builder()} {_COMMAND_LINE}".encode()


def _builder() -> str:
    return f"vmpool {version('vmpool')}"


def _publish_kernel(archive: Path, place: Path, work: Path, check: Check) -> None:
    files = kernel.assemble(tarball.read(archive, limits=tarball.Limits(), check=check))
    made = work / "kernel"
    with full_disk_told(work):
        made.mkdir()
        (made / manifest.KERNEL).write_bytes(files.kernel)
        (made / manifest.INITRD).write_bytes(files.initrd)
        (made / _RELEASE).write_text(files.release, encoding="utf-8")
        archive.unlink()
    shelf.replace_directory(made, place, at=work)


def _pack(content: Content, archive: Path, kernel_at: Path, bench: Bench, check: Check) -> str:
    """Write the image's files beside, publish and sign them, return their digest."""
    tree = tarball.read(archive, limits=tarball.Limits(), check=check)
    _strip(tree, content.strip)
    python = furnish.furnish(tree, agent=content.agent, warm=content.warm, check=check)
    made = bench.work / "image"
    with full_disk_told(bench.work):
        made.mkdir()
        with (made / manifest.ROOT).open("wb") as file:
            erofs.write(tree, file, uuid=_UUID, mtime=furnish.EPOCH, check=check)
        for name in (manifest.KERNEL, manifest.INITRD):
            os.link(kernel_at / name, made / name)
        data = manifest.encode(
            manifest.Manifest(
                name=content.name,
                description=content.description,
                origin=content.origin,
                builder=_builder(),
                kernel_release=(kernel_at / _RELEASE).read_text(encoding="utf-8"),
                python=python.path,
                agent_protocol=VERSIONS[1],
                command_line=f"{_COMMAND_LINE} {initrd.PYTHON_OPTION}={python.path}",
                defaults=content.defaults,
                files={name: manifest.record_of(made / name) for name in manifest.FILES},
                packages=furnish.packages(tree),
            )
        )
        (made / manifest.MANIFEST).write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    published = shelf.publish_directory(made, bench.images / digest)
    image = manifest.load(bench.images / digest)
    if not published:
        image.verify()  # who laid it there is not known
    signature.sign(image, bench.keyring, at=bench.work)
    return digest


def _kept(place: Path, bench: Bench) -> str | None:
    """Return the digest that a file of the cache has, if its image can be believed."""
    try:
        digest = place.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    if not manifest.DIGEST.fullmatch(digest):
        return None
    try:
        signature.require(manifest.load(bench.images / digest), bench.keyring)
    except ImageError:
        return None
    return digest


def _strip(tree: Tree, patterns: tuple[str, ...]) -> None:
    if patterns:
        unwanted = re.compile("|".join(translate(pattern) for pattern in patterns))
        for path in [path for path, _ in tree.walk() if unwanted.match(f"/{path}")]:
            tree.remove(path)
