"""Digest: of what a file holds, the same whether its zeros are stored or holes.

Memory and disks of machines are mostly zeros, and file systems choose for themselves what they
store. Blocks: about a second for each stored GiB.
"""

from __future__ import annotations

import errno
import hashlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK_BYTES = 64 << 10
"""Another size of blocks makes another digest."""

_ZERO_BLOCK = bytes(_BLOCK_BYTES)
_ZERO_TAG, _DATA_TAG = b"\0", b"\1"


def digest(path: Path) -> str:
    """Return the digest of a file, in hexadecimal.

    SHA-256 of a tag for each block, which is followed by the block's bytes unless all of them are
    zero, and of the file's size. So a hole is not read, and is nevertheless the zeros that it reads
    as: file systems choose for themselves what they store.
    """
    hasher = hashlib.sha256()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        offset = 0
        while offset < size:
            data = _next_data(descriptor, offset, size)
            zeros = (data - offset) // _BLOCK_BYTES
            hasher.update(_ZERO_TAG * zeros)
            offset += zeros * _BLOCK_BYTES
            block = os.pread(descriptor, _BLOCK_BYTES, offset)
            if _ZERO_BLOCK.startswith(block):
                hasher.update(_ZERO_TAG)
            else:
                hasher.update(_DATA_TAG)
                hasher.update(block)
            offset += _BLOCK_BYTES
    finally:
        os.close(descriptor)
    hasher.update(size.to_bytes(8, "big"))
    return hasher.hexdigest()


def _next_data(descriptor: int, offset: int, size: int) -> int:
    """Return where the next bytes are stored, at `offset` or later; the last block if nowhere."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as err:
        if err.errno != errno.ENXIO:  # only a hole is left
            raise
        return max(offset, size - 1)
