"""Signature: whose word it is that an image was built, laid beside its manifest.

The manifest has the digest of every file, and the image is named by the manifest's own: one
signature of it covers all. It is no part of the image: two hosts that build the same have the same
image, each with its own word.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from vmpool.errors import ImageError
from vmpool.image import shelf
from vmpool.image.manifest import MANIFEST
from vmpool.image.work import full_disk_told
from vmpool.trust import Purpose
from vmpool.trust.keys import PROOF_LIMIT_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.image.manifest import Image
    from vmpool.trust import Keyring

FILE = "signature.json"


def sign(image: Image, keyring: Keyring, *, at: Path) -> None:
    """Say that this host has built an image, instead of who said so before. *Idempotent.*

    Its files must have just been built or verified.

    Args:
        at: A directory on the same file system, for what is half written.

    Raises:
        ImageError: `image_damaged`; its manifest is not the one that it is named by. Or
            `image_missing`; it was removed just now.
        DiskFullError: There is no room for it.
    """
    proof, beside = keyring.own.sign(Purpose.IMAGE, _document(image)), at / FILE
    try:
        with full_disk_told(image.directory):
            beside.write_bytes(proof)
            beside.chmod(0o444)  # as all files of an image: what is trusted any account may read
            shelf.add_file(beside, image.directory / FILE)
    except FileNotFoundError as err:
        raise ImageError(f"image {image.name!r} was removed", code="image_missing") from err


def require(image: Image, keyring: Keyring) -> None:
    """Refuse an image that nobody signed whom this host trusts; of its files none is read. Blocks.

    Raises:
        ImageError: `image_untrusted`, or `image_damaged`.
        HostError: `keys_unreadable`.
    """
    _require(image, keyring, _proof(image))


def require_not_disowned(image: Image, keyring: Keyring) -> None:
    """Refuse an image that was signed, but by nobody whom this host still trusts. Blocks.

    For what was chosen before: images of vmpools that signed none have no signature.

    Raises:
        ImageError: `image_untrusted`, or `image_damaged`.
        HostError: `keys_unreadable`.
    """
    if proof := _proof(image):
        _require(image, keyring, proof)


def _require(image: Image, keyring: Keyring, proof: bytes) -> None:
    objection = keyring.objection(Purpose.IMAGE, _document(image), proof)
    if objection is not None:
        raise ImageError(
            f"image {image.name!r} is not trusted: {objection.why}",
            code="image_untrusted",
            remedy=objection.remedy
            or "build or import it again on this host; or, if you know where it comes from: "
            f"vmpool image sign {image.digest[:12]}",
        )


def _document(image: Image) -> bytes:
    """Return what is signed: the manifest, which is what the image is named by."""
    try:
        document = (image.directory / MANIFEST).read_bytes()
    except OSError as err:
        raise _damaged(image, f"its manifest cannot be read: {err.strerror}") from err
    if hashlib.sha256(document).hexdigest() != image.digest:
        raise _damaged(image, "its manifest is not the one that it is named by")
    return document


def _proof(image: Image) -> bytes:
    """Return what lies beside the manifest as its signature, empty for nothing."""
    try:
        with (image.directory / FILE).open("rb") as file:
            return file.read(PROOF_LIMIT_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as err:
        raise _damaged(image, f"its signature cannot be read: {err.strerror}") from err


def _damaged(image: Image, what: str) -> ImageError:
    return ImageError(
        f"image {image.name!r} is damaged: {what}",
        code="image_damaged",
        remedy="remove the image and build or import it again",
    )
