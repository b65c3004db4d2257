"""Interpreter: finds the Python of a root file system and keeps its compiled modules valid."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vmpool.errors import ImageError

if TYPE_CHECKING:
    from vmpool.image.tree import Check, Node, Tree

OLDEST = (3, 9)
"""The oldest Python that the agent runs on."""

_PLACES = ("/usr/bin", "/usr/local/bin", "/bin", "/opt/venv/bin")
_NAME = re.compile(r"python3\.(\d{1,3})")
_COMPILED = re.compile(r"(.+)\.cpython-3\d{1,2}(?:\.opt-[12])?\.pyc")
_HEADER = struct.Struct("<4sIII")  # PEP 552
_HEADER_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python in a root file system: where it is called from, and its version."""

    path: str
    version: tuple[int, int]


def find(tree: Tree) -> Interpreter:
    """Return the newest Python that the agent can run on, of equals the one named `python3`.

    Raises:
        ImageError: `image_without_python`: there is none, or none new enough.
    """
    found = [
        Interpreter(path=path, version=version)
        for place in _PLACES
        for path in _candidates(tree, place)
        if (version := _version(tree, path)) is not None
    ]
    fit = [one for one in found if one.version >= OLDEST]
    if fit:
        return max(fit, key=lambda one: (one.path.endswith("/python3"), one.version))
    oldest = ".".join(map(str, OLDEST))
    seen = ", ".join(f"{one.path} is {one.version[0]}.{one.version[1]}" for one in found)
    raise ImageError(
        f"no Python {oldest} or newer in {', '.join(_PLACES)}" + (f"; {seen}" if seen else ""),
        code="image_without_python",
        remedy="install python3 in the image and export it again",
    )


def _candidates(tree: Tree, place: str) -> list[str]:
    node = tree.find(place)
    if node is None:
        return []
    names = sorted(name for name in node.children if _NAME.fullmatch(name))
    return [f"{place}/{name}" for name in ("python3", *names) if name in node.children]


def _version(tree: Tree, path: str) -> tuple[int, int] | None:
    """Return the version of the program that `path` leads to, told by its name."""
    resolved = tree.resolve(path)
    if resolved is None or not resolved[1].is_file or not resolved[1].mode & 0o111:
        return None
    match = _NAME.fullmatch(resolved[0].rpartition("/")[2])
    return None if match is None else (3, int(match[1]))


def date_bytecode(tree: Tree, mtime: int, check: Check) -> None:
    """Make every compiled module valid for a source of `mtime`, by its header alone.

    An image shows one time for all files, and Python compiles anew on each start what does not
    match. Modules compiled under `SOURCE_DATE_EPOCH` would besides be checked by reading and
    hashing their source on each import; they become timed ones.
    """
    for path, node in list(tree.walk()):
        check()
        if not path.endswith("/__pycache__") or not node.is_directory:
            continue
        package = tree.find(path.rpartition("/")[0])
        for name, compiled in node.children.items():
            match = _COMPILED.fullmatch(name)
            if match is not None and package is not None and compiled.is_file:
                source = package.children.get(f"{match[1]}.py")
                if source is not None and source.is_file:
                    _date(compiled, source.size_bytes, mtime)


def _date(compiled: Node, source_size: int, mtime: int) -> None:
    data = compiled.read()
    if len(data) < _HEADER_SIZE:
        return
    magic, *_ = _HEADER.unpack_from(data)
    head = _HEADER.pack(magic, 0, mtime & 0xFFFFFFFF, source_size & 0xFFFFFFFF)
    compiled.content = head + data[_HEADER_SIZE:]
