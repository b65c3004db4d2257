"""Manifest: an image on disk, immutable, named by the digest of what its manifest says.

The manifest holds the digest of every file, so the SHA-256 of the manifest is the image's name.
It holds no time and no place: the same inputs give the same image.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec

from vmpool.errors import ImageError
from vmpool.image.recipe import Defaults
from vmpool_agent.wire import VERSIONS

FORMAT = 2
"""Version of the manifest; a host refuses what another one wrote."""

MANIFEST = "manifest.json"
ROOT = "root.erofs"
KERNEL = "kernel"
INITRD = "initrd"
FILES = (ROOT, KERNEL, INITRD)

DIGEST = re.compile(r"[0-9a-f]{64}")
"""The name of an image's directory."""

_MANIFEST_LIMIT_BYTES = 4 << 20


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one file of an image must be."""

    size_bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What an image is.

    Attributes:
        origin: `recipe`, or `import` for a tarball made elsewhere.
        builder: The vmpool that made it.
        kernel_release: As in `uname -r`.
        python: Path of the Python that runs the agent.
        agent_protocol: Version of the agent protocol that its agent speaks.
        command_line: What the guest's kernel is told in any case; an engine adds to it.
        packages: Versions of Debian packages by name; empty for an image without dpkg.
    """

    name: str
    description: str
    origin: str
    builder: str
    kernel_release: str
    python: str
    agent_protocol: int
    command_line: str
    defaults: Defaults
    files: dict[str, FileRecord]
    packages: dict[str, str]
    format: int = FORMAT


class _Header(msgspec.Struct):
    """The one field that every version of the manifest has."""

    format: int


# Made here, as msgspec crashes when two threads are the first to decode a type.
_HEADERS = msgspec.json.Decoder(_Header)
_MANIFESTS = msgspec.json.Decoder(Manifest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A bootable root file system with kernel and initrd: a directory and what its manifest says.

    Attributes:
        digest: SHA-256 of the manifest, in hexadecimal; also the directory's name.
    """

    name: str
    digest: str
    directory: Path
    manifest: Manifest

    @property
    def root(self) -> Path:
        """The read-only root file system, erofs."""
        return self.directory / ROOT

    @property
    def kernel(self) -> Path:
        """The kernel, as QEMU's `-kernel` takes it."""
        return self.directory / KERNEL

    @property
    def initrd(self) -> Path:
        """The initrd, as QEMU's `-initrd` takes it."""
        return self.directory / INITRD

    @property
    def command_line(self) -> str:
        """What the guest's kernel is told in any case; an engine adds to it."""
        return self.manifest.command_line

    @property
    def defaults(self) -> Defaults:
        """What a template gets when nobody says otherwise."""
        return self.manifest.defaults

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files; kernel and initrd are shared with other images."""
        return sum(record.size_bytes for record in self.manifest.files.values())

    def check_sizes(self) -> None:
        """Compare the size of every file with its record.

        Raises:
            ImageError: A file is missing or cut short; code `image_damaged`.
        """
        for name, record in self.manifest.files.items():
            path = self.directory / name
            try:
                found = path.lstat()
            except OSError as err:
                raise _damaged(path, err.strerror or str(err)) from err
            if not stat.S_ISREG(found.st_mode) or found.st_size != record.size_bytes:
                raise _damaged(path, f"it has {found.st_size} bytes, not {record.size_bytes}")

    def verify(self) -> None:
        """Read every file and compare it with its digest. Blocks for a second per GiB or so.

        Raises:
            ImageError: A file is missing or not what was built; code `image_damaged`.
        """
        self.check_sizes()
        if (found := digest(self.directory / MANIFEST)) != self.digest:
            raise _damaged(self.directory / MANIFEST, f"its digest is {found}, not its name")
        for name, record in self.manifest.files.items():
            if digest(self.directory / name) != record.sha256:
                raise _damaged(self.directory / name, "it does not match its digest")


def record_of(path: Path) -> FileRecord:
    """Return the record of a file as it is now."""
    return FileRecord(size_bytes=path.stat().st_size, sha256=digest(path))


def encode(manifest: Manifest) -> bytes:
    """Return the manifest's bytes, the same for equal manifests."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="deterministic"), indent=2)


def load(directory: Path) -> Image:
    """Read the image in `directory`, whose name is the digest of its manifest.

    Of its other files the sizes are checked, the digests are not.

    Raises:
        ImageError: There is none (`image_missing`), it is damaged (`image_damaged`), or another
            vmpool made it, whose format or agent this one does not understand (`image_unfit`).
    """
    path = directory / MANIFEST
    try:
        with path.open("rb") as file:
            data = file.read(_MANIFEST_LIMIT_BYTES + 1)
    except FileNotFoundError as err:
        raise ImageError(f"no image in {str(directory)!r}", code="image_missing") from err
    except OSError as err:
        raise _damaged(path, err.strerror or str(err)) from err
    manifest = _decode(path, data)
    if (found := hashlib.sha256(data).hexdigest()) != directory.name:
        raise _damaged(path, f"its digest is {found}, not its name")
    image = Image(name=manifest.name, digest=directory.name, directory=directory, manifest=manifest)
    image.check_sizes()
    return image


def _decode(path: Path, data: bytes) -> Manifest:
    if len(data) > _MANIFEST_LIMIT_BYTES:
        raise _damaged(path, f"it is longer than {_MANIFEST_LIMIT_BYTES} bytes")
    try:
        version = _HEADERS.decode(data).format
        if version != FORMAT:
            raise _unfit(path, f"has format {version}", f"reads {FORMAT}")
        manifest = _MANIFESTS.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise _damaged(path, str(err)) from err
    if not VERSIONS[0] <= manifest.agent_protocol <= VERSIONS[1]:
        spoken = " to ".join(map(str, sorted(set(VERSIONS))))
        agent = f"has an agent that speaks protocol {manifest.agent_protocol}"
        raise _unfit(path, agent, f"speaks {spoken}")
    if set(manifest.files) != set(FILES):
        raise _damaged(path, f"it lists {sorted(manifest.files)}, not {sorted(FILES)}")
    return manifest


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file or a directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unfit(path: Path, what: str, ours: str) -> ImageError:
    return ImageError(
        f"{str(path)!r} {what}, this vmpool {ours}",
        code="image_unfit",
        remedy="build or import the image again with this vmpool",
    )


def _damaged(path: Path, what: str) -> ImageError:
    return ImageError(
        f"{str(path)!r} is damaged: {what}",
        code="image_damaged",
        remedy="remove the image and build or import it again",
    )
