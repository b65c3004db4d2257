"""Vouching: what machines are made of is what was checked, each time that one is made.

A snapshot is read to its last byte when a host starts, and its image with it; both may be changed
on the disk while the host runs. Before each restore the inodes of both are looked at, which takes
microseconds, and what has changed is read again. It makes nothing itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmpool.errors import ImageError
from vmpool.image import signature
from vmpool.trust.custody import files_of

if TYPE_CHECKING:
    from vmpool.image import Image, Library
    from vmpool.snapshot import Snapshot
    from vmpool.trust import Custody


class Vouching:
    """Says of snapshots and images whether machines may be made of them."""

    def __init__(self, images: Library, custody: Custody) -> None:
        self._images = images
        self._custody = custody

    def choice(self, image: Image) -> None:
        """Refuse an image that a new template is wanted of and that nobody vouches for.

        Takes a fraction of a millisecond: of the image's files only the manifest is read.

        Raises:
            ImageError: `image_untrusted`, `image_damaged`.
            HostError: `keys_unreadable`.
        """
        signature.require(image, self._custody.keyring)

    def former_choice(self, image: Image) -> None:
        """Refuse an image that was chosen once, and whose signer is trusted no more. As quick.

        Raises:
            ImageError: `image_untrusted`, `image_damaged`.
            HostError: `keys_unreadable`.
        """
        signature.require_not_disowned(image, self._custody.keyring)

    async def image(self, image: Image) -> None:
        """Compare all of an image with its digests, unless nobody has touched it since.

        Raises:
            ImageError: `image_damaged`.
        """
        files = [image.directory / name for name in image.manifest.files]
        if not self._custody.is_intact(files):
            before = self._custody.seals(files)
            await self._images.verify(image)
            self._custody.note(before)  # what was written to meanwhile is read again

    async def base(self, base: Snapshot) -> None:
        """Refuse a base that is not what was saved, or whose image is not what was built.

        Raises:
            SnapshotError: `snapshot_damaged`.
            ImageError: `image_damaged`.
            NotFoundError: `image_not_found`.
        """
        root = base.spec.root
        if self._custody.is_intact([root, *files_of(base)]):
            return
        await asyncio.to_thread(self._custody.verify, base)
        image = self._images.load(base.manifest.image)
        if image.root != root:
            raise ImageError(
                f"snapshot {base.manifest.id!r} runs on {str(root)!r}, not on its image",
                code="image_damaged",
                remedy="make the template again",
            )
        await self.image(image)
