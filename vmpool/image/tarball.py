"""Tarball: reads a tar archive, trusted or not, into a tree.

Nothing is extracted. Every length in the archive is capped before it is believed, and what has no
business in an image (devices, entries that climb, links to nowhere) is refused by name.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zlib
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, BinaryIO, cast

from vmpool.errors import ImageError
from vmpool.image.tree import ENCODING, Check, Node, Slice, Tree, directory, link
from vmpool.model import GIB, MIB

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_ENTRIES = 1_000_000
MAX_BYTES = 16 * GIB
_MAX_HEADER = MIB  # an extended header holds names and attributes
_MAX_ATTRIBUTES = 2048  # they share a block with their inode
_CHUNK = MIB
_ATTRIBUTE = "SCHILY.xattr."
_LEFT_EMPTY = ("dev", "proc", "sys", "run", "tmp")
"""Directories that the guest fills when it boots."""

_COMPRESSIONS: dict[bytes, Callable[[Path], IO[bytes]]] = {
    b"\x1f\x8b": gzip.open,  # type: ignore[dict-item]
    b"\xfd7zXZ": lzma.open,
    b"BZh": bz2.open,
}
_KINDS = {
    tarfile.BLKTYPE: "a device",
    tarfile.CHRTYPE: "a device",
    tarfile.FIFOTYPE: "a named pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
_ZSTD = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of an archive is believed."""

    entries: int = MAX_ENTRIES
    size_bytes: int = MAX_BYTES


class _CappedHeaders:
    """A file that refuses large reads, for `tarfile` reads nothing but headers through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER:
            raise ImageError(f"a header of {size} bytes", code="image_tarball_damaged")
        return self._file.read(size)


def unpack(source: Path, target: BinaryIO, *, limits: Limits, check: Check) -> bool:
    """Decompress `source` into `target` if it is compressed; return whether it was.

    Raises:
        ImageError: It is damaged, of an unknown compression, or larger than `limits`.
        OSError: It cannot be read, or `target` cannot be written.
    """
    with source.open("rb") as file:
        magic = file.read(6)
    if magic.startswith(_ZSTD):
        raise ImageError(
            f"{source} is compressed with zstd",
            code="image_tarball_compression",
            remedy=f"unpack it first: zstd -d {source}",
        )
    opener = next((o for prefix, o in _COMPRESSIONS.items() if magic.startswith(prefix)), None)
    if opener is None:
        return False
    size = 0
    try:
        with opener(source) as compressed:
            while chunk := compressed.read(_CHUNK):
                check()
                size += len(chunk)
                if size > limits.size_bytes:
                    raise _too_large(source, limits)
                target.write(chunk)
    except (EOFError, lzma.LZMAError, zlib.error, ValueError) as err:
        raise _damaged(source, err) from err
    except OSError as err:
        if err.errno is None:  # from gzip and bz2, about what they read
            raise _damaged(source, err) from err
        raise
    return True


def read(source: Path, *, limits: Limits, check: Check) -> Tree:
    """Return the tree in the uncompressed tar archive `source`, contents left where they are.

    Devices below `/dev` and all else in directories that the guest fills itself are skipped.

    Raises:
        ImageError: `image_tarball_damaged`, `image_tarball_too_large`, `image_tarball_layers` or
            `image_path_unsafe`.
        OSError: It cannot be read.
    """
    tree = Tree()
    entries = size = 0
    try:
        with (
            source.open("rb") as file,
            tarfile.open(
                fileobj=cast("Any", _CappedHeaders(file)),
                mode="r:",
                encoding=ENCODING[0],
                errors=ENCODING[1],
            ) as archive,
        ):
            while (entry := archive.next()) is not None:
                check()
                entries += 1
                size += entry.size
                if entries > limits.entries or size > limits.size_bytes:
                    raise _too_large(source, limits)
                _add(tree, entry, source)
                archive.members.clear()  # type: ignore[attr-defined] # would keep a million entries
            file.seek(archive.offset)  # where the last header ended
            ended = file.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except (tarfile.TarError, ValueError, OverflowError) as err:
        raise _damaged(source, err) from err
    if not entries:
        raise ImageError(f"{source} holds no files", code="image_tarball_damaged")
    if not ended:  # cut between two entries, which `tarfile` takes for the end
        raise _damaged(source, "it breaks off")
    _require_root(tree, source)
    for name in _LEFT_EMPTY:
        tree.empty(name)
    return tree


def _require_root(tree: Tree, source: Path) -> None:
    """Refuse an image's layers, which those who take `docker save` for `docker export` have."""
    names = tree.root.children.keys()
    if names & {"oci-layout", "manifest.json"} and not names & {"bin", "usr"}:
        raise ImageError(
            f"{source} holds the layers of an image and no root file system",
            code="image_tarball_layers",
            remedy="export a container of it: docker export $(docker create IMAGE) -o FILE.tar",
        )


def _add(tree: Tree, entry: tarfile.TarInfo, source: Path) -> None:
    name = entry.name
    if name.startswith("/"):
        raise _unsafe(name, "its name is absolute")
    if name.removeprefix("./").partition("/")[0] in _LEFT_EMPTY and not entry.isdir():
        return
    if entry.isdir():
        node = directory()
    elif entry.issym():
        node = link(_target(entry))
    elif entry.islnk():
        tree.put(name, _linked(tree, entry))
        return
    elif entry.isreg() and not entry.issparse():
        content = Slice(file=source, offset=entry.offset_data, size=entry.size)
        node = Node(mode=stat.S_IFREG, content=content)
    else:
        kind = _KINDS.get(entry.type, "neither a file nor a directory nor a link")
        raise _unsafe(name, f"it is {kind}")
    node.uid, node.gid = _id(entry.uid, name), _id(entry.gid, name)
    if not node.is_link:
        node.mode = stat.S_IFMT(node.mode) | (entry.mode & 0o7777)
    node.xattrs = _attributes(entry)
    tree.put(name, node)


def _id(number: int, name: str) -> int:
    if not 0 <= number < 0xFFFFFFFF:
        raise _unsafe(name, f"its owner is {number}")
    return number


def _target(entry: tarfile.TarInfo) -> str:
    target = entry.linkname
    if not 0 < len(target.encode(*ENCODING)) < 4096 or "\0" in target:  # PATH_MAX
        raise _unsafe(entry.name, "its target is no path")
    return target


def _linked(tree: Tree, entry: tarfile.TarInfo) -> Node:
    target = entry.linkname
    if target.startswith("/") or ".." in target.split("/"):
        raise _unsafe(entry.name, f"it is a hard link out of the archive, to {target[:200]!r}")
    parent, _, last = target.rstrip("/").rpartition("/")
    above = tree.find(parent)
    node = None if above is None else above.children.get(last)
    if node is None or node.is_directory:
        raise _unsafe(entry.name, f"it is a hard link to nothing, {target[:200]!r}")
    return node


def _attributes(entry: tarfile.TarInfo) -> dict[str, bytes]:
    """Return file capabilities and `user.*`; the rest belongs to the host that made the archive."""
    found = {
        name: value.encode(*ENCODING)
        for key, value in entry.pax_headers.items()
        if (name := key.removeprefix(_ATTRIBUTE)) != key
        and (name == "security.capability" or (name.startswith("user.") and name != "user."))
    }
    if any(len(name.encode(*ENCODING)) > 255 for name in found) or (
        sum(len(name) + len(value) for name, value in found.items()) > _MAX_ATTRIBUTES
    ):
        raise _unsafe(entry.name, "its extended attributes are too large")
    return found


def _unsafe(name: str, why: str) -> ImageError:
    return ImageError(f"refused {name[:200]!r}: {why}", code="image_path_unsafe")


def _damaged(source: Path, err: Exception | str) -> ImageError:
    return ImageError(f"{source} is no sound tar archive: {err}", code="image_tarball_damaged")


def _too_large(source: Path, limits: Limits) -> ImageError:
    return ImageError(
        f"{source} is larger than {limits.entries} entries or {limits.size_bytes // MIB} MiB",
        code="image_tarball_too_large",
    )
