"""Listing: what a guest says of its files, checked and turned into values.

Pure, as `answers`, which it adds to. A name that is not UTF-8 holds surrogate escapes, for the way
back.
"""

from __future__ import annotations

from typing import Any

from vmpool.agent.answers import integer, malformed, path, short
from vmpool.model import FileInfo, FileKind, LinkEnd

_MOST_MODE = 0o7777
_MOST_METADATA = 4096
"""Characters of all metadata of a file: section 5.2 of the protocol."""
_ENTRY_COST = 128


def entries(message: dict[str, Any]) -> list[FileInfo]:
    """Return the entries of a message.

    Raises:
        GuestError: The message is malformed.
    """
    listed = message.get("entries")
    if not isinstance(listed, list):
        raise malformed("entries")
    return [file_info(entry) for entry in listed]


def file_info(value: object) -> FileInfo:
    """Return one entry.

    Raises:
        GuestError: It is malformed.
    """
    if not isinstance(value, dict):
        raise malformed("info")
    return FileInfo(
        path=path(value, "path"),
        kind=_kind(value),
        size_bytes=integer(value, "size_bytes"),
        mode=_mode(value),
        owner=short(value, "owner"),
        group=short(value, "group"),
        modified_ns=integer(value, "modified_ns"),
        target=None if value.get("target") is None else path(value, "target"),
        resolved=None if value.get("resolved") is None else _link_end(value["resolved"]),
        metadata=_metadata(value.get("metadata", {})),
    )


def cost(info: FileInfo) -> int:
    """Return about how much memory an entry holds."""
    end = "" if info.resolved is None else info.resolved.path
    words = sum(len(key) + len(one) for key, one in info.metadata.items())
    return _ENTRY_COST + len(info.path) + len(info.target or "") + len(end) + words


def _link_end(value: object) -> LinkEnd:
    if not isinstance(value, dict):
        raise malformed("resolved")
    return LinkEnd(path=path(value, "path"), kind=_kind(value), mode=_mode(value))


def _kind(value: dict[str, Any]) -> FileKind:
    try:
        return FileKind(short(value, "kind"))
    except ValueError as err:
        raise malformed("kind") from err


def _mode(value: dict[str, Any]) -> int:
    mode = integer(value, "mode")
    if not 0 <= mode <= _MOST_MODE:
        raise malformed("mode")
    return mode


def _metadata(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise malformed("metadata")
    words = [*value.keys(), *value.values()]
    if not all(isinstance(word, str) and word.isascii() and word.isprintable() for word in words):
        raise malformed("metadata")
    if sum(map(len, words)) > _MOST_METADATA:
        raise malformed("metadata")
    return value
