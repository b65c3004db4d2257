"""Tree: a root file system held as values, never as files of the host.

A tarball is read into a tree, the tree is changed in memory, and `erofs` writes it out. Contents
stay where they are in the tarball. So a name from an archive never becomes a path of the host,
owners and capabilities survive without root, and the order of everything is ours alone.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vmpool.errors import ImageError

Check = Callable[[], None]
"""Called between pieces of long work; raises when the work is no longer wanted."""

_MAX_LINKS = 40  # MAXSYMLINKS, linux/namei.h
_MAX_NAME = 255  # NAME_MAX, linux/limits.h
_MAX_PATH = 4096  # PATH_MAX, linux/limits.h


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Bytes inside a file of the host."""

    file: Path
    offset: int
    size: int


@dataclass(slots=True, kw_only=True)
class Node:
    """A directory, regular file or symbolic link; two names may hold the same node.

    Attributes:
        mode: File type and permission bits, as in stat(2).
        content: A regular file's bytes, or where they are.
        target: Where a symbolic link points, as written in it.
        children: A directory's entries by name.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    content: bytes | Slice = b""
    target: str = ""
    children: dict[str, Node] = field(default_factory=dict)

    @property
    def is_directory(self) -> bool:
        """Whether the node may have children."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        """Whether the node has content."""
        return stat.S_ISREG(self.mode)

    @property
    def is_link(self) -> bool:
        """Whether the node has a target."""
        return stat.S_ISLNK(self.mode)

    @property
    def size_bytes(self) -> int:
        """Length of a regular file."""
        return self.content.size if isinstance(self.content, Slice) else len(self.content)

    def read(self) -> bytes:
        """Return a regular file's bytes.

        Raises:
            ImageError: The tarball is shorter than its index said.
        """
        if isinstance(self.content, bytes):
            return self.content
        with self.content.file.open("rb") as source:
            source.seek(self.content.offset)
            data = source.read(self.content.size)
        if len(data) != self.content.size:
            raise ImageError(f"{self.content.file} is truncated", code="image_tarball_damaged")
        return data


def directory(*, mode: int = 0o755, uid: int = 0, gid: int = 0) -> Node:
    """Return an empty directory."""
    return Node(mode=stat.S_IFDIR | mode, uid=uid, gid=gid)


def file(content: bytes | Slice, *, mode: int = 0o644, uid: int = 0, gid: int = 0) -> Node:
    """Return a regular file."""
    return Node(mode=stat.S_IFREG | mode, uid=uid, gid=gid, content=content)


def link(target: str) -> Node:
    """Return a symbolic link."""
    return Node(mode=stat.S_IFLNK | 0o777, target=target)


class Tree:
    """A root file system. Paths are relative to its root, with or without a leading slash."""

    def __init__(self) -> None:
        self.root = directory()

    def find(self, path: str) -> Node | None:
        """Return what `path` leads to inside the tree, symbolic links followed, or `None`."""
        resolved = self.resolve(path)
        return None if resolved is None else resolved[1]

    def resolve(self, path: str) -> tuple[str, Node] | None:
        """Return the link-free path of `path` and its node; `None` when it leads nowhere.

        Absolute links start at the tree's root and none climbs out of it.
        """
        trail: list[tuple[str, Node]] = [("", self.root)]
        todo = list(reversed(path.split("/")))
        followed = 0
        while todo:
            part = todo.pop()
            if part in ("", "."):
                continue
            if part == "..":
                del trail[max(1, len(trail) - 1) :]
                continue
            node = trail[-1][1].children.get(part)
            if node is None:
                return None
            if node.is_link:
                followed += 1
                if followed > _MAX_LINKS:
                    return None
                if node.target.startswith("/"):
                    del trail[1:]
                todo.extend(reversed(node.target.split("/")))
            else:
                trail.append((part, node))
        return "/".join(name for name, _ in trail) or "/", trail[-1][1]

    def put(self, path: str, node: Node) -> None:
        """Place `node` at `path`, making parents; what was there goes, links in parents followed.

        A directory placed on a directory keeps the children of the old one.

        Raises:
            ImageError: The path climbs, is too long, or a parent is not a directory.
        """
        parts = _parts(path)
        if not parts:
            if not node.is_directory:
                raise _unsafe(path, "the root must be a directory")
            node.children = self.root.children
            self.root = node
            return
        parent = self._parent(parts)
        before = parent.children.get(parts[-1])
        if before is not None and before.is_directory and node.is_directory:
            node.children = before.children
        parent.children[parts[-1]] = node

    def remove(self, path: str) -> None:
        """Remove what `path` names, with all below it. *Idempotent.*"""
        parts = _parts(path)
        parent = self.find("/".join(parts[:-1]))
        if parent is not None and parts:
            parent.children.pop(parts[-1], None)

    def empty(self, path: str) -> None:
        """Remove everything below the directory `path`, if there is one. *Idempotent.*"""
        node = self.find(path)
        if node is not None:
            node.children.clear()

    def walk(self) -> Iterator[tuple[str, Node]]:
        """Yield every path (without a leading slash; the root is empty) and node, in name order."""
        stack = [("", self.root)]
        while stack:
            path, node = stack.pop()
            yield path, node
            below = f"{path}/" if path else ""
            stack.extend(
                (below + name, node.children[name])
                for name in sorted(node.children, key=_sort_key, reverse=True)
            )

    def _parent(self, parts: list[str]) -> Node:
        node = self.root
        for depth, part in enumerate(parts[:-1], start=1):
            path = "/".join(parts[:depth])
            if part not in node.children:
                node.children[part] = directory()
            found = self.find(path)
            if found is None or not found.is_directory:
                raise _unsafe("/".join(parts), f"{path!r} is not a directory")
            node = found
        return node


def _parts(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _unsafe(path, "it climbs")
    if len(path) > _MAX_PATH or any(len(part.encode(*ENCODING)) > _MAX_NAME for part in parts):
        raise _unsafe(path, "it is too long")
    if any("\0" in part for part in parts):
        raise _unsafe(path, "it holds a zero byte")
    return parts


def _unsafe(path: str, why: str) -> ImageError:
    return ImageError(f"cannot place {path[:200]!r}: {why}", code="image_path_unsafe")


ENCODING = ("utf-8", "surrogateescape")
"""How names and targets are held as text, so that any bytes survive."""


def _sort_key(name: str) -> bytes:
    return name.encode(*ENCODING)
