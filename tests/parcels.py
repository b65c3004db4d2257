"""Parcels taken apart and put together otherwise, for whoever must not be taken in by one."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING, Any

from backports.zstd import CompressionParameter, compress, decompress

from vmpool.parcel.envelope import ENVELOPE, PROOF

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

Entries = list[tuple[tarfile.TarInfo, bytes]]


def entries(parcel: bytes) -> Entries:
    """Return what is in a parcel."""
    with tarfile.open(fileobj=io.BytesIO(decompress(parcel))) as archive:
        return [(entry, _content(archive, entry)) for entry in archive]


def _content(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(entry)
    assert file is not None
    return file.read()


def packed(what: Entries, *, end: bytes = bytes(2 * tarfile.BLOCKSIZE)) -> bytes:
    """Return a parcel of entries, whatever they are."""
    archive = bytearray()
    for entry, content in what:
        archive += entry.tobuf(tarfile.GNU_FORMAT)
        archive += content + bytes(-len(content) % tarfile.BLOCKSIZE)
    return squeezed(bytes(archive) + end)


def squeezed(archive: bytes) -> bytes:
    """Return compressed what stands for an archive."""
    options: dict[int, int] = {CompressionParameter.checksum_flag: 1}
    return compress(archive, options=options)


def unbelieved(_: bytes) -> bytes:
    """Return what stands where a signature must be."""
    return b"none"


def said_otherwise(
    parcel: bytes,
    change: Callable[[Any], object],
    *,
    sign: Callable[[bytes], bytes] = unbelieved,
) -> bytes:
    """Return a parcel whose envelope says something else of the same files, and is signed so."""
    (signed, _), (entry, content), *files = entries(parcel)
    assert (signed.name, entry.name) == (PROOF, ENVELOPE)
    envelope = json.loads(content)
    change(envelope)
    words = json.dumps(envelope).encode()
    entry.size = len(words)
    proof = sign(words)
    signed.size = len(proof)
    return packed([(signed, proof), (entry, words), *files])


async def pieces(parcel: bytes, size_bytes: int = 5000) -> AsyncIterator[bytes]:
    """Yield a parcel as it may come over a network."""
    for at in range(0, len(parcel), size_bytes):
        yield parcel[at : at + size_bytes]
