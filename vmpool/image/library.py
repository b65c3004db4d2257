"""Library: the images on disk, and the names they are known by.

    images/<digest>/       an image, and who says that it was built so
    images/names/<name>    the digest of the image last built or imported under that name
    images/cache/          what builds keep
    images/work/           what builds have under way

It decides nothing about templates made of an image: whoever removes one asks them first.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from vmpool.errors import ImageError, InvalidRequestError, NotFoundError
from vmpool.image import build, manifest, shelf, signature, work
from vmpool.image.build import Bench, Content, Freshness
from vmpool.image.recipe import NAME, Defaults, Recipe, Source
from vmpool.trust import Keyring

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from vmpool.image.manifest import Image
    from vmpool.image.work import Step

log = logging.getLogger(__name__)

_DIGEST_START = re.compile(r"[0-9a-f]{8,64}")


class Library:
    """The images of one host.

    Args:
        state: The host's state directory; need not exist.
    """

    def __init__(self, state: Path) -> None:
        self._state = state
        self._images = state / "images"
        self._names = self._images / "names"
        self._cache = self._images / "cache"
        self._work = self._images / "work"

    def list(self) -> list[Image]:
        """Return all images, sorted by name; one that cannot be read is left out and logged."""
        found = []
        for directory in self._directories():
            try:
                found.append(manifest.load(directory))
            except ImageError as err:
                log.warning("image=%s left out: %s", directory.name, err)
        return sorted(found, key=lambda image: (image.name, image.digest))

    def names(self) -> dict[str, str]:
        """Return the digest that each name stands for."""
        if not self._names.is_dir():
            return {}
        return {
            path.name: path.read_text(encoding="utf-8").strip()
            for path in sorted(self._names.iterdir())
            if NAME.fullmatch(path.name)
        }

    def load(self, name_or_digest: str) -> Image:
        """Return an image; its manifest's digest is checked, of its files only the sizes.

        Args:
            name_or_digest: A name, a digest, or eight or more digits that only one begins with.

        Raises:
            NotFoundError: `image_not_found`.
            ImageError: It is damaged or of a later vmpool.
        """
        wanted = self.names().get(name_or_digest)
        if wanted is None and _DIGEST_START.fullmatch(name_or_digest):
            matching = [
                place.name for place in self._directories() if place.name.startswith(name_or_digest)
            ]
            wanted = matching[0] if len(matching) == 1 else None
        if wanted is None or not (self._images / wanted).is_dir():
            raise NotFoundError(
                f"no image {name_or_digest[:100]!r}",
                code="image_not_found",
                remedy="build or import it: vmpool image build, vmpool image import",
            )
        return manifest.load(self._images / wanted)

    async def verify(self, image: Image) -> None:
        """Read all of an image and compare it with its digests.

        Raises:
            ImageError: `image_damaged`; the message names the file.
        """
        await work.in_thread(lambda _: image.verify())

    async def sign(self, image: Image) -> None:
        """Read all of an image, and take it for one that this host has built. *Idempotent.*

        Raises:
            ImageError: `image_damaged`.
            HostError: `host_key_unusable`, or `state_unwritable`.
            DiskFullError: There is no room for the signature.
        """
        await self.verify(image)
        async with work.workspace(self._work) as directory:
            signature.sign(image, Keyring.open(self._state), at=directory)

    def remove(self, digest: str) -> None:
        """Remove an image and the names that stand for it. *Idempotent.*

        Hypervisors that run from it keep its files until they end. What builds keep stays, so
        that building it again is quick.

        Raises:
            InvalidRequestError: `digest` is not one.
        """
        if not manifest.DIGEST.fullmatch(digest):
            raise InvalidRequestError(f"not a digest: {digest[:100]!r}", code="image_name_invalid")
        for name, known in self.names().items():
            if known == digest:
                (self._names / name).unlink(missing_ok=True)
        # Renamed first: half an image is never found under its name.
        self._work.mkdir(parents=True, exist_ok=True)
        doomed = self._work / f"removed-{digest}"
        try:
            (self._images / digest).rename(doomed)
        except FileNotFoundError:
            return
        work.erase(doomed)

    def sweep(self) -> int:
        """Remove what killed builds left; return how many. *Idempotent*, safe beside a build."""
        return work.sweep(self._work)

    async def build(
        self,
        recipe: Recipe,
        *,
        agent: bytes,
        progress: Callable[[Step], None] = work.silent,
        freshness: Freshness = Freshness.KEPT,
    ) -> Image:
        """Build an image, or return the one built from the same inputs before.

        On cancellation nothing is published and nothing is left behind. *Idempotent.*

        Args:
            agent: The guest agent's archive.
            progress: Told of every step, from the loop's thread.

        Raises:
            HostError: This host cannot build; the remedy says what it lacks. Or
                `host_key_unusable`.
            ImageError: The recipe cannot be built.
            DiskFullError: The disk is full.
        """
        content = Content(
            name=recipe.name,
            description=recipe.description,
            origin="recipe",
            defaults=recipe.defaults,
            agent=agent,
            warm=recipe.warm,
            strip=recipe.strip,
        )
        async with work.workspace(self._work) as directory:
            keyring = Keyring.open(self._state)
            bench = self._bench(directory, keyring, progress, freshness)
            kernel_at = await build.kernel_files(recipe.source, bench)
            archive = await build.root_archive(recipe, bench)
            digest = await build.image(content, archive, kernel_at, bench)
            return self._named(recipe.name, digest, directory)

    async def import_tarball(
        self,
        source: Path,
        name: str,
        *,
        agent: bytes,
        defaults: Defaults | None = None,
        progress: Callable[[Step], None] = work.silent,
    ) -> Image:
        """Make an image of a root file system in a tar archive, such as `docker export` writes.

        Any Linux with a Python that the agent runs on; the kernel is Debian's. The archive is not
        trusted: nothing of it is extracted on the host.

        Raises:
            InvalidRequestError: `image_name_invalid`.
            NotFoundError: `image_tarball_missing`.
            HostError: The kernel is not kept yet and this host cannot fetch it. Or
                `host_key_unusable`.
            ImageError: `image_tarball_damaged`, `image_tarball_too_large`,
                `image_tarball_compression`, `image_tarball_layers`, `image_path_unsafe`,
                `image_without_python` or `image_accounts_malformed`.
            DiskFullError: The disk is full.
        """
        if not NAME.fullmatch(name):
            raise InvalidRequestError(
                f"not a name: {name[:100]!r}",
                code="image_name_invalid",
                remedy="give one of lower-case letters, digits and dashes: --name NAME",
            )
        content = Content(
            name=name,
            description=f"imported from {source.name}",
            origin="import",
            defaults=defaults if defaults is not None else Defaults(),
            agent=agent,
        )
        async with work.workspace(self._work) as directory:
            keyring = Keyring.open(self._state)
            bench = self._bench(directory, keyring, progress, Freshness.KEPT)
            archive = await build.unpacked(source, bench)
            kernel_at = await build.kernel_files(Source(), bench)
            digest = await build.image(content, archive, kernel_at, bench)
            return self._named(name, digest, directory)

    def _bench(
        self,
        directory: Path,
        keyring: Keyring,
        progress: Callable[[Step], None],
        freshness: Freshness,
    ) -> Bench:
        return Bench(
            cache=self._cache,
            images=self._images,
            work=directory,
            keyring=keyring,
            freshness=freshness,
            progress=progress,
        )

    def _named(self, name: str, digest: str, directory: Path) -> Image:
        image = manifest.load(self._images / digest)
        shelf.publish_text(digest, self._names / name, at=directory)
        return image

    def _directories(self) -> tuple[Path, ...]:
        if not self._images.is_dir():
            return ()
        found = (path for path in self._images.iterdir() if manifest.DIGEST.fullmatch(path.name))
        return tuple(sorted(found))
