"""Download: one file of a guest as the answer to a request, whole or in part, plain or packed."""

from __future__ import annotations

import re
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from aiohttp import web

from vmpool.agent import Agent
from vmpool.api import compression, outflow
from vmpool.api.limits import Limits
from vmpool.errors import CallerError, GuestFileError
from vmpool.model import FileKind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from vmpool.model import FileInfo

BINARY: Final = "application/octet-stream"

WHOLE_BYTES: Final = 1 << 16
"""A file up to this size is read before its answer begins, so that the length is what was read.

Beyond it the length is what `stat` says. Sizes in /proc and /sys mean nothing; files there are
small.
"""

_VARIES: Final = {"Vary": "Accept-Encoding"}
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """One request for a file, let in.

    Attributes:
        path: In the guest; `user` is the account that reads.
    """

    request: web.Request
    limits: Limits
    agent: Agent
    path: str
    user: str

    async def answer(self, packs: Callable[[bytes], bool]) -> web.StreamResponse:
        """Send the file; `Range` of one range is honoured where the file has a size.

        Args:
            packs: Whether a file that begins so is sent packed.

        Raises:
            CallerError: `range_not_satisfiable`.
            GuestFileError: The guest refused, or `file_changed`.
        """
        wanted = _RANGE.fullmatch(self.request.headers.get("Range", ""))
        if wanted is not None and wanted[0] != "bytes=-":
            return await self._part(wanted)
        async with aclosing(self.agent.read_file(self.path, user=self.user)) as chunks:
            head, whole = await _read_head(chunks)
            packed = packs(head)
            if whole:
                headers = _VARIES | ({"Content-Encoding": "gzip"} if packed else {})
                body = compression.pack(head) if packed else head
                return web.Response(body=body, content_type=BINARY, headers=headers)
            info = await self._info()
            sized = info.kind is FileKind.FILE and info.size_bytes >= len(head)
            content = exactly(chunks, info.size_bytes if sized else None, head)
            response = web.StreamResponse(headers={"Content-Type": BINARY} | _VARIES)
            if packed:
                response.headers["Content-Encoding"] = "gzip"
                return await self.stream(response, compression.packed(content))
            if sized:
                response.content_length = info.size_bytes
            response.headers["Accept-Ranges"] = "bytes"
            return await self.stream(response, content)

    async def stream(
        self, response: web.StreamResponse, content: AsyncIterator[bytes]
    ) -> web.StreamResponse:
        """Send a response whose body comes piece by piece."""
        await response.prepare(self.request)
        async for piece in content:
            await outflow.send(response.write(piece), self.limits)
        await response.write_eof()
        return response

    async def _info(self) -> FileInfo:
        """Return what is read: of a link, the size is that of what it leads to."""
        info = await self.agent.stat(self.path, user=self.user)
        if info.resolved is not None:
            info = await self.agent.stat(info.resolved.path, user=self.user)
        return info

    async def _part(self, wanted: re.Match[str]) -> web.StreamResponse:
        size = (await self._info()).size_bytes
        if wanted[1]:
            first, last = int(wanted[1]), min(int(wanted[2] or size), size - 1)
        else:
            first, last = max(size - int(wanted[2]), 0), size - 1
        if first > last:
            raise CallerError(
                f"range {wanted[0]!r} is outside of {size} bytes", code="range_not_satisfiable"
            )
        length = last - first + 1
        response = web.StreamResponse(status=206, headers={"Content-Type": BINARY})
        response.headers["Content-Range"] = f"bytes {first}-{last}/{size}"
        response.content_length = length
        reading = self.agent.read_file(self.path, user=self.user, offset=first, length=length)
        async with aclosing(reading) as chunks:
            return await self.stream(response, exactly(chunks, length))


async def _read_head(chunks: AsyncIterator[bytes]) -> tuple[bytes, bool]:
    """Return the beginning of a file, and whether that is all of it."""
    head = bytearray()
    async for chunk in chunks:
        head += chunk
        if len(head) > WHOLE_BYTES:
            return bytes(head), False
    return bytes(head), True


async def exactly(
    chunks: AsyncIterator[bytes], length: int | None, head: bytes = b""
) -> AsyncIterator[bytes]:
    """Yield a file from its beginning on, and no more than the length that was announced.

    Raises:
        GuestFileError: `file_changed` when the file became shorter meanwhile.
    """
    sent = 0
    chunk: bytes | None = head
    while chunk is not None:
        kept = chunk if length is None else chunk[: length - sent]
        if kept:
            yield kept
        sent += len(kept)
        if sent == length:
            return
        chunk = await anext(chunks, None)
    if length is not None:
        raise GuestFileError("the file became shorter while it was read", code="file_changed")
