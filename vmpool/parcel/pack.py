"""Pack: a parcel's bytes, made as they are taken.

It reads what it is given and decides nothing. Blocks: whoever takes the bytes does so in a thread.
"""

from __future__ import annotations

import os
import tarfile
from typing import TYPE_CHECKING

from vmpool.errors import SnapshotError
from vmpool.parcel.compression import compressor
from vmpool.parcel.envelope import ENVELOPE, PROOF, Envelope, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from vmpool.snapshot import Snapshot

_PIECE_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 16


def pack(
    envelope: Envelope, checkpoint: Snapshot, base: Snapshot, *, sign: Callable[[bytes], bytes]
) -> Iterator[bytes]:
    """Yield a parcel in pieces of at least 64 KiB, but for the last.

    Args:
        checkpoint: What the envelope describes; it must stay until the last piece was taken.
        base: Likewise; read when the envelope says so.
        sign: Returns the signature of the envelope's bytes.

    Raises:
        SnapshotError: `snapshot_damaged`; a file is gone, or not what its manifest says.
    """
    frame = compressor()
    ready = bytearray()
    for piece in _archive(envelope, checkpoint, base, sign):
        ready += frame.compress(piece)
        if len(ready) >= _CHUNK_BYTES:
            yield bytes(ready)
            ready.clear()
    yield bytes(ready + frame.flush())


def _archive(
    envelope: Envelope, checkpoint: Snapshot, base: Snapshot, sign: Callable[[bytes], bytes]
) -> Iterator[bytes]:
    said = encode(envelope)
    for name, content in ((PROOF, sign(said)), (ENVELOPE, said)):
        yield header(name, len(content))
        yield content
        yield padding(len(content))
    if envelope.with_base:
        yield from _files("base", base)
    yield from _files("checkpoint", checkpoint)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _files(folder: str, snapshot: Snapshot) -> Iterator[bytes]:
    for name, record in sorted(snapshot.manifest.files.items()):
        yield header(f"{folder}/{name}", record.size_bytes)
        yield from _content(snapshot.directory / name, record.size_bytes)
        yield padding(record.size_bytes)


def _content(path: Path, size_bytes: int) -> Iterator[bytes]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as err:
        raise _damaged(path, err.strerror or "") from err
    try:
        for offset in range(0, size_bytes, _PIECE_BYTES):
            wanted = min(_PIECE_BYTES, size_bytes - offset)
            piece = os.pread(descriptor, wanted, offset)
            if len(piece) != wanted:
                raise _damaged(path, "it was cut short")
            yield piece
    except OSError as err:
        raise _damaged(path, err.strerror or "") from err
    finally:
        os.close(descriptor)


def header(name: str, size_bytes: int) -> bytes:
    """Return the header of a plain file in a tar archive; the only kind that a parcel has."""
    entry = tarfile.TarInfo(name)
    entry.size = size_bytes
    entry.mode = 0o400
    return entry.tobuf(tarfile.GNU_FORMAT)


def padding(size_bytes: int) -> bytes:
    """Return what fills a file's last block."""
    return bytes(-size_bytes % tarfile.BLOCKSIZE)


def _damaged(path: Path, what: str) -> SnapshotError:
    return SnapshotError(
        # Its owner reads this, who is not to learn where the host keeps things.
        f"{path.name!r} of {path.parent.name!r} cannot be exported: {what}",
        code="snapshot_damaged",
        remedy="remove the checkpoint",
    )
