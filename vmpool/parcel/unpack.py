"""Unpack: a parcel read as it comes, from somebody who may be hostile.

The envelope says which files follow and how large they are; anything else is refused where it
comes, before it is kept. Nothing here knows what becomes of the files, and no name in a parcel
becomes a path that is not one of a snapshot's.
"""

from __future__ import annotations

import asyncio
import errno
import os
import tarfile
from typing import TYPE_CHECKING

from vmpool.errors import DiskFullError, InfrastructureError, TooLargeError
from vmpool.parcel.compression import ZstdError, decompressor
from vmpool.parcel.envelope import (
    ENVELOPE,
    ENVELOPE_LIMIT_BYTES,
    PROOF,
    PROOF_LIMIT_BYTES,
    Envelope,
    damaged,
    decode,
    unfit,
)
from vmpool.parcel.pack import header, padding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from vmpool.snapshot import Manifest

_PIECE_BYTES = 1 << 20
_PAGE_BYTES = 4096


class Unpacking:
    """One parcel: its envelope, then its files, then its end, in this order.

    Args:
        chunks: The parcel, in pieces of any size.
        limit_bytes: What its files may hold together, zeros included.
        require: Refuses an envelope, as it came, by the signature that came with it.

    All verbs raise:
        InvalidRequestError: `parcel_damaged`; it is none, breaks off, or does not keep its word.
    """

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        *,
        limit_bytes: int,
        require: Callable[[bytes, bytes], None],
    ) -> None:
        self._content = _Content(chunks)
        self._require = require
        self._limit_bytes = limit_bytes
        self._envelope: Envelope | None = None

    async def envelope(self) -> Envelope:
        """Read what the parcel says of itself; none of it is looked at before it is trusted.

        Raises:
            VmpoolError: What `require` raises.
            SnapshotError: `parcel_unfit`; another vmpool wrote it.
            TooLargeError: `parcel_too_large`.
        """
        proof = await self._words(PROOF, PROOF_LIMIT_BYTES)
        said = await self._words(ENVELOPE, ENVELOPE_LIMIT_BYTES)
        await asyncio.to_thread(self._require, said, proof)
        envelope = decode(said)
        if envelope.size_bytes > self._limit_bytes:
            raise TooLargeError(
                f"the exported checkpoint holds {envelope.size_bytes} bytes, the limit is "
                f"{self._limit_bytes}",
                code="parcel_too_large",
                remedy="raise checkpoints.import_bytes",
            )
        return envelope

    async def _words(self, name: str, limit_bytes: int) -> bytes:
        """Read a small file that must come now."""
        block = await self._content.exactly(tarfile.BLOCKSIZE)
        size_bytes = _size_of(block)
        if name == PROOF and block == header(ENVELOPE, size_bytes):
            raise unfit("is not signed, as those of older vmpools are")
        if not 0 < size_bytes <= limit_bytes or block != header(name, size_bytes):
            damaged(f"{name!r} does not come where it must")
        words = await self._content.exactly(size_bytes)
        await self._skip_padding(size_bytes)
        return words

    async def files(self, folder: str, manifest: Manifest, *, into: Path | None) -> None:
        """Read the files of one manifest, zero pages as holes; sizes are kept to, digests not read.

        Args:
            folder: `base` or `checkpoint`.
            into: Directory that they are created in; `None` to drop them.

        Raises:
            DiskFullError: There is no room for them.
        """
        for name, record in sorted(manifest.files.items()):
            block = await self._content.exactly(tarfile.BLOCKSIZE)
            if block != header(f"{folder}/{name}", record.size_bytes):
                damaged(f"{folder}/{name} does not follow")
            if into is None:
                await self._drop(record.size_bytes)
            else:
                await self._store(into / name, record.size_bytes)
            await self._skip_padding(record.size_bytes)

    async def end(self) -> None:
        """Read the end; then the parcel came as it was sent, to the last byte."""
        if any(await self._content.exactly(2 * tarfile.BLOCKSIZE)):
            damaged("more files follow")
        await self._content.end()

    async def _drop(self, size_bytes: int) -> None:
        for offset in range(0, size_bytes, _PIECE_BYTES):
            await self._content.exactly(min(_PIECE_BYTES, size_bytes - offset))

    async def _store(self, path: Path, size_bytes: int) -> None:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.ftruncate(descriptor, size_bytes)
                for offset in range(0, size_bytes, _PIECE_BYTES):
                    piece = await self._content.exactly(min(_PIECE_BYTES, size_bytes - offset))
                    await asyncio.to_thread(_write, descriptor, piece, offset)
            finally:
                os.close(descriptor)
        except OSError as err:
            if err.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise DiskFullError("no space for an imported checkpoint") from err
            message = f"cannot write an imported checkpoint: {err.strerror}"
            raise InfrastructureError(message) from err

    async def _skip_padding(self, size_bytes: int) -> None:
        filling = padding(size_bytes)
        if await self._content.exactly(len(filling)) != filling:
            damaged("a file is longer than it should be")


class _Content:
    """What a compressed stream holds, in pieces of a size that is asked for."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._decompressor = decompressor()

    async def exactly(self, size_bytes: int) -> bytes:
        """Return the next bytes; no more is decompressed than is asked for."""
        piece = bytearray()
        while len(piece) < size_bytes:
            if self._decompressor.eof:
                damaged("it ends too early")
            chunk = b""
            if self._decompressor.needs_input:
                chunk = await self._next()
            piece += await self._decompress(chunk, size_bytes - len(piece))
        return bytes(piece)

    async def end(self) -> None:
        """Require that nothing more comes, and that what came has the checksum that it was sent
        with."""
        while not self._decompressor.eof:
            chunk = await self._next() if self._decompressor.needs_input else b""
            if await self._decompress(chunk, 1):
                damaged("it goes on after its end")
        if self._decompressor.unused_data or await anext(self._chunks, b""):
            damaged("it goes on after its end")

    async def _next(self) -> bytes:
        while (chunk := await anext(self._chunks, None)) is not None:
            if chunk:
                return chunk
        return damaged("it breaks off")

    async def _decompress(self, chunk: bytes, most_bytes: int) -> bytes:
        try:
            return await asyncio.to_thread(self._decompressor.decompress, chunk, most_bytes)
        except ZstdError as err:
            damaged(str(err))


def _size_of(block: bytes) -> int:
    """Return the size in a header, which is to be compared with one of ours anyway."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "strict").size
    except (tarfile.HeaderError, UnicodeDecodeError) as err:
        damaged(str(err))


def _write(descriptor: int, piece: bytes, offset: int) -> None:
    """Write a piece, and leave out its zero pages: the file is a hole so far."""
    view = memoryview(piece)
    for at in range(0, len(piece), _PAGE_BYTES):
        page = piece[at : at + _PAGE_BYTES]
        if page.count(0) == len(page):
            continue
        rest, place = view[at : at + _PAGE_BYTES], offset + at
        while rest:
            written = os.pwrite(descriptor, rest, place)
            rest, place = rest[written:], place + written
