"""Keyfile: a key of this host in a file, its owner's alone, there whole or not at all.

It is written beside, synced, linked and synced again, so that neither a kill nor a power cut leaves
half of it under its name, or lets a host forget a key that it has used. It knows no kind of key.
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_SUFFIX_BYTES = 4
_HEX = "[0-9a-f]"


def write(path: Path, data: bytes) -> None:
    """Write a key, unless there is one of this name already. *Idempotent.*

    Raises:
        OSError: It could not be written.
    """
    beside = path.with_name(f"{path.name}.{secrets.token_hex(_SUFFIX_BYTES)}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(beside)
        except FileExistsError:
            pass
        except FileNotFoundError:  # swept by one who was faster, and whose key is there
            if not path.exists():
                raise
    finally:
        beside.unlink(missing_ok=True)
    sync(path.parent)


def sweep(path: Path) -> None:
    """Remove what was being written beside a key by one that is gone. *Idempotent.*

    Call it once the key is there: whoever is still writing finds that, and loses nothing.

    Raises:
        OSError: It could not be removed.
    """
    for stray in path.parent.glob(f"{path.name}.{_HEX * _SUFFIX_BYTES * 2}"):
        stray.unlink(missing_ok=True)


def sync(directory: Path) -> None:
    """Have the names in a directory survive a power cut.

    Raises:
        OSError: The disk failed.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
