"""Traffic: what goes between a caller and a port of a sandbox, whatever is spoken there.

It counts as the sandbox's use, byte by byte: a connection over which nothing goes does not keep one
awake, and is given up in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Final

from aiohttp import web

from vmpool.errors import CapacityError, TaskTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from vmpool.agent.tunnel import Tunnel
    from vmpool.config import ApiSettings
    from vmpool.sandbox import Sandbox


class Traffic:
    """One connection to a port; sends and receives as its tunnel does.

    Args:
        silence: Seconds without a byte either way after which it is given up.
    """

    def __init__(self, sandbox: Sandbox, tunnel: Tunnel, silence: float) -> None:
        self._sandbox = sandbox
        self._tunnel = tunnel
        self._silence = silence
        self._heard = asyncio.get_running_loop().time()

    async def receive(self) -> bytes:
        """Return what the guest sends next; nothing once it sends no more.

        Raises:
            TaskTimeoutError: `port_silent`; nothing went either way for too long.
            TaskError, GuestError: As `Tunnel.receive`.
        """
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout_at(self._heard + self._silence):
                    data = await self._tunnel.receive()
            except TimeoutError as err:
                if loop.time() < self._heard + self._silence:
                    continue  # it went the other way meanwhile
                raise TaskTimeoutError(
                    f"nothing went over the connection for {self._silence} s", code="port_silent"
                ) from err
            self.touch()
            return data

    async def send(self, data: bytes) -> bool:
        """Send bytes; return whether the guest may still take them.

        Raises:
            GuestError: As `Tunnel.send`.
        """
        self.touch()
        taken = await self._tunnel.send(data)
        self.touch()
        return taken

    def finish(self) -> None:
        """Let the guest see the end of what is sent. *Idempotent.*"""
        self._tunnel.finish()

    def touch(self) -> None:
        """Note that something goes over it."""
        self._heard = asyncio.get_running_loop().time()
        self._sandbox.touch()


class Connections:
    """How many connections to ports each sandbox has. One for each server.

    They share the agent's stream with all else that is asked of a guest, which must not go without.
    """

    def __init__(self, settings: ApiSettings) -> None:
        self._most = settings.port_connections
        self._silence = settings.port_silence
        self._open: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def to(self, sandbox: Sandbox, port: int) -> AsyncIterator[Traffic]:
        """Connect to a port of a sandbox for the time of a block.

        Raises:
            CapacityError: `port_connections_full`; it has as many as it may.
            NotFoundError: `sandbox_ended` when the sandbox is no more, or ends meanwhile.
            ConflictError: `sandbox_paused`, `sandbox_rolled_back`; as `Sandbox.lent`.
            TaskError, GuestError: As `Agent.reach`.
        """
        with self._place(sandbox.id):
            async with sandbox.lent() as agent, agent.reach(port) as tunnel:
                yield Traffic(sandbox, tunnel, self._silence)

    @contextlib.contextmanager
    def _place(self, sandbox_id: str) -> Iterator[None]:
        if self._open[sandbox_id] >= self._most:
            raise CapacityError(
                f"there are {self._most} connections to ports of this sandbox",
                code="port_connections_full",
                remedy="close some, or raise api.port_connections",
            )
        self._open[sandbox_id] += 1
        try:
            yield
        finally:
            self._open[sandbox_id] -= 1
            if not self._open[sandbox_id]:
                del self._open[sandbox_id]


CONNECTIONS: Final = web.AppKey("connections", Connections)
