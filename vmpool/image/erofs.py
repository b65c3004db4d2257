"""Erofs: writes a tree as a read-only file system, the same bytes for the same tree everywhere.

Uncompressed: a guest under emulation pays for every byte that it unpacks, and the host's page
cache is shared by all clones only while what they read is what is on disk.

Written here and not by mkfs.erofs because an image is named by its digest, and the tool's layout
changes from release to release; and because a tree that never lands on the host's disk needs no
root to keep its owners and capabilities, and cannot climb.

Layout (linux/fs/erofs/erofs_fs.h): one block with the superblock; the metadata area, inodes in
name order, each followed by its extended attributes and its tail; then whole blocks of data.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from vmpool.errors import ImageError
from vmpool.image.tree import ENCODING, Check, Node, Slice, Tree

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from uuid import UUID

BLOCK = 4096
_MAGIC = 0xE0F5E1E2
_SUPERBLOCK_OFFSET = 1024
_SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sI44x")
_COMPACT = struct.Struct("<HHHHIIIIHHI")
_EXTENDED = struct.Struct("<HHHHQIIIIQII16x")
_ENTRY = struct.Struct("<QHBB")
_ATTRIBUTE = struct.Struct("<BBH")
_ATTRIBUTES_HEADER = struct.Struct("<IB7x")
_SLOT = 32  # inode numbers count slots of this size
_FLAT_PLAIN, _FLAT_INLINE = 0, 2
_MTIME_FEATURE = 0x2  # EROFS_FEATURE_COMPAT_MTIME
_FILE_TYPES = {stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFLNK: 7}
_ATTRIBUTE_PREFIXES = {"user.": 1, "security.": 6}
_CHUNK = 1 << 20


@dataclass(slots=True)
class _Inode:
    """A node with the place it was given."""

    node: Node
    serial: int
    links: int
    size: int
    attributes: bytes
    parent: int
    offset: int = 0
    block: int = 0
    inline: bool = False

    @property
    def extended(self) -> bool:
        return max(self.node.uid, self.node.gid, self.links) > 0xFFFF or self.size > 0xFFFFFFFF

    @property
    def header_size(self) -> int:
        return (_EXTENDED.size if self.extended else _COMPACT.size) + len(self.attributes)

    @property
    def tail_size(self) -> int:
        return self.size % BLOCK

    @property
    def number(self) -> int:
        return self.offset // _SLOT


def write(tree: Tree, file: BinaryIO, *, uuid: UUID, mtime: int, check: Check) -> None:
    """Write `tree` as an erofs file system to `file`, which is empty and seekable.

    Args:
        uuid: Of the file system.
        mtime: Unix time in seconds that every file shows as its own.
        check: Called for every file.

    Raises:
        ImageError: A source file is truncated.
        OSError: `file` cannot be written.
    """
    inodes = _collect(tree)
    blocks = _place(inodes.values())
    # Metadata in one piece: a few dozen MiB for the largest image.
    metadata = bytearray(_metadata_size(inodes.values()))
    first = 1 + len(metadata) // BLOCK
    for inode in inodes.values():
        check()
        file.seek((first + inode.block) * BLOCK)
        tail = _write_blocks(inode, inodes, file)
        head = _header(inode, first + inode.block, mtime) + inode.attributes + tail
        metadata[inode.offset : inode.offset + len(head)] = head
    file.seek(BLOCK)
    file.write(metadata)
    total = first + blocks
    file.truncate(total * BLOCK)
    root = inodes[id(tree.root)]
    file.seek(_SUPERBLOCK_OFFSET)
    file.write(
        _SUPERBLOCK.pack(
            *(_MAGIC, 0, _MTIME_FEATURE, BLOCK.bit_length() - 1, 0, root.number, len(inodes)),
            *(mtime, 0, total, 1, 0, uuid.bytes, b"", 0),
        )
    )


def _collect(tree: Tree) -> dict[int, _Inode]:
    """Return an inode for each distinct node, keyed by the node's `id()`, in name order."""
    inodes: dict[int, _Inode] = {}
    parents = {id(tree.root): id(tree.root)}
    for _, node in tree.walk():
        known = inodes.get(id(node))
        if known is not None:
            known.links += 1
            continue
        subdirectories = 0
        for child in node.children.values():
            if child.is_directory:
                parents[id(child)] = id(node)
                subdirectories += 1
        inodes[id(node)] = _Inode(
            node=node,
            serial=len(inodes) + 1,
            links=2 + subdirectories if node.is_directory else 1,
            size=_size(node),
            attributes=_attributes(node),
            parent=parents.get(id(node), 0),
        )
    return inodes


def _size(node: Node) -> int:
    if node.is_directory:
        return _directory_size(node)
    if node.is_link:
        return len(node.target.encode(*ENCODING))
    return node.size_bytes


def _place(inodes: Iterable[_Inode]) -> int:
    """Give each inode its offset in the metadata area and its first block; return the blocks."""
    offset = blocks = 0
    for inode in inodes:
        unit = inode.header_size + inode.tail_size
        inode.inline = inode.tail_size > 0 and unit <= BLOCK
        length = unit if inode.inline else inode.header_size
        # A unit that would cross a block starts the next: inline tails must not cross.
        if offset % BLOCK + length > BLOCK:
            offset += -offset % BLOCK
        inode.offset = offset
        offset += length + -length % _SLOT
        inode.block = blocks
        blocks += inode.size // BLOCK + (inode.tail_size > 0 and not inode.inline)
    return blocks


def _metadata_size(inodes: Collection[_Inode]) -> int:
    end = max(
        inode.offset + inode.header_size + (inode.tail_size if inode.inline else 0)
        for inode in inodes
    )
    return end + -end % BLOCK


def _header(inode: _Inode, start: int, mtime: int) -> bytes:
    """Return the inode itself, whose data begin in block `start`."""
    node = inode.node
    layout = _FLAT_INLINE if inode.inline else _FLAT_PLAIN
    icount = (len(inode.attributes) - _ATTRIBUTES_HEADER.size) // 4 + 1 if inode.attributes else 0
    head = (int(inode.extended) | layout << 1, icount, node.mode)
    if inode.extended:
        return _EXTENDED.pack(
            *(*head, 0, inode.size, start, inode.serial, node.uid, node.gid),
            *(mtime, 0, inode.links),
        )
    return _COMPACT.pack(
        *(*head, inode.links, inode.size, 0, start, inode.serial, node.uid, node.gid, 0)
    )


def _write_blocks(inode: _Inode, inodes: dict[int, _Inode], file: BinaryIO) -> bytes:
    """Write what goes into whole blocks at the place of `file`; return the inline tail."""
    whole = inode.size - inode.tail_size if inode.inline else inode.size
    if isinstance(inode.node.content, Slice):
        return _copy(inode.node.content, file, whole)
    data = _small_content(inode, inodes)
    file.write(data[:whole])
    return data[whole:]


def _copy(source: Slice, file: BinaryIO, size: int) -> bytes:
    """Copy the first `size` bytes of `source` to `file`; return the rest."""
    left = size
    rest = source.size - size
    with source.file.open("rb") as data:
        data.seek(source.offset)
        while left:
            chunk = data.read(min(left, _CHUNK))
            if not chunk:
                break
            file.write(chunk)
            left -= len(chunk)
        tail = data.read(rest)
    if left or len(tail) != rest:
        raise ImageError(f"{source.file} is truncated", code="image_tarball_damaged")
    return tail


def _small_content(inode: _Inode, inodes: dict[int, _Inode]) -> bytes:
    node = inode.node
    if node.is_link:
        return node.target.encode(*ENCODING)
    if node.is_directory:
        return _directory(inode, inodes)
    return node.read()


def _directory_names(node: Node) -> list[list[bytes]]:
    """Return the names of a directory, those of each block together."""
    names = sorted([b".", b"..", *(name.encode(*ENCODING) for name in node.children)])
    blocks: list[list[bytes]] = [[]]
    used = 0
    for name in names:
        need = _ENTRY.size + len(name)
        if used + need > BLOCK:
            blocks.append([])
            used = 0
        blocks[-1].append(name)
        used += need
    return blocks


def _directory_size(node: Node) -> int:
    *full, last = _directory_names(node)
    return len(full) * BLOCK + sum(_ENTRY.size + len(name) for name in last)


def _directory(inode: _Inode, inodes: dict[int, _Inode]) -> bytes:
    node = inode.node
    places = {name.encode(*ENCODING): inodes[id(child)] for name, child in node.children.items()}
    places[b"."] = inode
    places[b".."] = inodes[inode.parent]
    data = bytearray()
    for names in _directory_names(node):
        data += bytes(-len(data) % BLOCK)
        at = len(names) * _ENTRY.size
        for name in names:
            kind = _FILE_TYPES[stat.S_IFMT(places[name].node.mode)]
            data += _ENTRY.pack(places[name].number, at, kind, 0)
            at += len(name)
        data += b"".join(names)
    return bytes(data)


def _attributes(node: Node) -> bytes:
    """Return the inline attribute area of `node`: a header and its entries."""
    if not node.xattrs:
        return b""
    area = bytearray(_ATTRIBUTES_HEADER.pack(0, 0))
    for name in sorted(node.xattrs):
        prefix = next(prefix for prefix in _ATTRIBUTE_PREFIXES if name.startswith(prefix))
        suffix = name.removeprefix(prefix).encode(*ENCODING)
        value = node.xattrs[name]
        area += _ATTRIBUTE.pack(len(suffix), _ATTRIBUTE_PREFIXES[prefix], len(value))
        area += suffix + value
        area += bytes(-len(area) % 4)
    return bytes(area)
