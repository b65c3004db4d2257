"""Metadata: words that a file's writer left with it, kept as extended attributes.

Runs in the child of a file operation. Programs in the guest may write such attributes as well, so
that what is read is checked like what is asked for: what does not fit is passed over.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Any

from vmpool_agent.session import OperationError

PREFIX = "user.e2b."
"""By this name programs that were written for E2B's guests find them."""
MOST_KEY = 255 - len(PREFIX)  # XATTR_NAME_MAX, linux/limits.h
MOST_BYTES = 4096
"""Keys and values of one file together."""
_PRINTABLE = frozenset(map(chr, range(0x20, 0x7F)))
_UNSUPPORTED = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP})


def read(path: str) -> dict[str, str]:
    """Return what is kept with a file, links not followed; nothing where it cannot be read."""
    found: dict[str, str] = {}
    left = MOST_BYTES
    with contextlib.suppress(OSError):
        for name in sorted(os.listxattr(path, follow_symlinks=False)):
            if not name.startswith(PREFIX):
                continue
            key = name[len(PREFIX) :]
            value = os.getxattr(path, name, follow_symlinks=False).decode("latin-1")
            left -= len(key) + len(value)
            if left < 0:
                break
            if _is_fit(key, value):
                found[key] = value
    return found


def wanted(request: dict[str, Any]) -> dict[str, str] | None:
    """Return what is to be kept with a file; `None` leaves it what it has.

    Raises:
        OperationError: `bad_request`.
    """
    value = request.get("metadata")
    if value is None:
        return None
    if (
        not isinstance(value, dict)
        or not all(isinstance(one, str) and _is_fit(key, one) for key, one in value.items())
        or sum(len(key) + len(one) for key, one in value.items()) > MOST_BYTES
    ):
        raise OperationError(
            "bad_request",
            f"metadata is printable ASCII, a key at most {MOST_KEY} bytes, all at most"
            f" {MOST_BYTES}",
        )
    return value


def replace(fd: int, metadata: dict[str, str]) -> None:
    """Keep `metadata` with an open file, and nothing else; on failure it has what it had.

    Raises:
        OSError: The file system has no room.
        OperationError: `metadata_unsupported`.
    """
    before: dict[str, bytes] = {}
    try:
        names = [name for name in os.listxattr(fd) if name.startswith(PREFIX)]
        before.update((name, os.getxattr(fd, name)) for name in names)
        _set(fd, {PREFIX + key: value.encode("ascii") for key, value in metadata.items()})
    except OSError as err:
        with contextlib.suppress(OSError):
            _set(fd, before)
        if err.errno not in _UNSUPPORTED:
            raise
        if metadata:
            raise OperationError(
                "metadata_unsupported", "this file system keeps no extended attributes"
            ) from err


def _set(fd: int, attributes: dict[str, bytes]) -> None:
    """Have a file's attributes of ours be these; what goes makes room for what comes."""
    for name in os.listxattr(fd):
        if name.startswith(PREFIX) and name not in attributes:
            os.removexattr(fd, name)
    for name, value in attributes.items():
        os.setxattr(fd, name, value)


def _is_fit(key: str, value: str) -> bool:
    return 0 < len(key) <= MOST_KEY and _PRINTABLE.issuperset(key) and _PRINTABLE.issuperset(value)
