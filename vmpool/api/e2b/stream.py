"""Stream: an answer that is sent line by line, to a client that may be slow, or have left."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from aiohttp import web

from vmpool.api import outflow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.api.e2b.visit import Visit


class Stream:
    """The answer to one client; its head goes out with the first line."""

    def __init__(self, visit: Visit, media: str) -> None:
        self.response = web.StreamResponse(headers={"Content-Type": media})
        self._visit = visit
        self._loop = asyncio.get_running_loop()
        self._sent_at = self._loop.time()
        self._held = b""

    def hold(self, data: bytes) -> None:
        """Keep bytes to go out with the next ones: each send wakes a client."""
        self._held += data

    async def send(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            StalledError: The client took nothing for too long.
        """
        data, self._held = self._held + data, b""
        await self.begin()
        await outflow.send(self.response.write(data), self._visit.limits)

    async def finish(self, data: bytes) -> None:
        """Send the last bytes, and end the answer.

        Raises:
            StalledError: The client took nothing for too long.
        """
        data, self._held = self._held + data, b""
        await self.begin()
        await outflow.send(self.response.write_eof(data), self._visit.limits)

    async def begin(self) -> None:
        """Have the head on its way. *Idempotent.*"""
        self._sent_at = self._loop.time()
        if not self.response.prepared:
            await self.response.prepare(self._visit.request)

    @contextlib.asynccontextmanager
    async def kept_alive(self, keepalive: bytes, interval: float) -> AsyncIterator[None]:
        """Send something when nothing else was for `interval` seconds, for a block."""
        keeping = asyncio.create_task(self._keep_alive(keepalive, interval))
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    async def _keep_alive(self, keepalive: bytes, interval: float) -> None:
        while True:
            left = self._sent_at + interval - self._loop.time()
            if left > 0:
                await asyncio.sleep(left)
            elif self.response.prepared or self._held:
                try:
                    await self.send(keepalive)
                except outflow.StalledError:
                    self._cut_off()
                    return
            else:
                self._sent_at = self._loop.time()

    def _cut_off(self) -> None:
        """Let a client go that takes nothing: what runs for it ends with the connection."""
        transport = self._visit.request.transport
        if transport is not None:
            transport.abort()
