"""Compression: gzip on its way in and out, never more than a piece of it at a time.

What comes in is unpacked here and not by aiohttp, which takes a stream that broke off for whole.
"""

from __future__ import annotations

import asyncio
import codecs
import re
import zlib
from typing import TYPE_CHECKING, Final

from vmpool.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator

    from aiohttp import web

PIECE_BYTES: Final = 1 << 16

LEVEL: Final = 1
"""Over three times as fast as zlib's own choice, for text that is a tenth larger."""

WORTH_BYTES: Final = 1 << 10
"""Smaller content is sent as it is."""

WORTH_SHARE: Final = 0.8
"""What a sample of the content must shrink to."""

_SAMPLE_BYTES: Final = 1 << 14
_GZIP: Final = 16 + zlib.MAX_WBITS  # zlib.h: a gzip header and trailer around the stream
_NEVER: Final = re.compile(r"q=0(?:\.0*)?")


def is_packed(request: web.Request) -> bool:
    """Tell whether a request's body is gzip.

    Raises:
        InvalidRequestError: `unsupported_media_type`; it is packed in another way.
    """
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding in {"", "identity"}:
        return False
    if encoding in {"gzip", "x-gzip"}:
        return True
    raise InvalidRequestError(
        f"content encoding {encoding[:200]!r} is not 'gzip'",
        code="unsupported_media_type",
        remedy="send it as it is, or packed with gzip",
    )


async def unpacked(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the content of a gzip stream in pieces; how much that is, its reader limits.

    Raises:
        InvalidRequestError: `invalid_body`; it is no gzip stream, or not whole.
    """
    unpacker = zlib.decompressobj(_GZIP)
    async for chunk in chunks:
        rest = chunk
        while rest:
            if unpacker.eof:  # streams may follow each other, RFC 1952, section 2.2
                unpacker = zlib.decompressobj(_GZIP)
            for piece in _pieces(unpacker, rest):
                if piece:
                    yield piece
                # A chunk may hold a thousand times its size: others have their turn meanwhile, also
                # where its reader only drops what comes, and where it is streams of nothing.
                await asyncio.sleep(0)
            rest = unpacker.unused_data
    if not unpacker.eof:
        raise InvalidRequestError("the request body's gzip stream broke off", code="invalid_body")


def _pieces(unpacker: zlib._Decompress, data: bytes) -> Iterator[bytes]:
    """Yield what `data` unpacks to, up to the end of its stream; nothing is a piece as well."""
    try:
        piece = b"more"
        while piece and not unpacker.eof:
            piece = unpacker.decompress(data, PIECE_BYTES)
            yield piece
            data = unpacker.unconsumed_tail
    except zlib.error as err:
        raise InvalidRequestError(
            f"the request body is no gzip stream: {err}", code="invalid_body"
        ) from err


def pays(request: web.Request, head: bytes) -> bool:
    """Tell whether content that begins with `head` is to be sent packed: text, and worth it."""
    if len(head) < WORTH_BYTES or not _accepts(request.headers.get("Accept-Encoding", "")):
        return False
    sample = head[:_SAMPLE_BYTES]
    try:
        codecs.utf_8_decode(sample, "strict", False)
    except UnicodeDecodeError:
        return False
    return b"\0" not in sample and len(zlib.compress(sample, LEVEL)) < WORTH_SHARE * len(sample)


def pack(content: bytes) -> bytes:
    """Return content as a gzip stream."""
    return zlib.compress(content, LEVEL, _GZIP)


async def packed(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield content as a gzip stream; it ends only if the content did."""
    packer = zlib.compressobj(LEVEL, wbits=_GZIP)
    async for chunk in chunks:
        if piece := packer.compress(chunk):
            yield piece
    yield packer.flush()


def _accepts(header: str) -> bool:
    for item in header.lower().split(","):
        coding, _, weight = item.partition(";")
        if coding.strip() in {"gzip", "*"}:
            return _NEVER.fullmatch(weight.strip()) is None
    return False
