"""Door: which connections are let in, and how long a stranger may stand in it.

Anybody may connect, and each connection is a descriptor. A connection is a stranger's until a
request of it has been admitted; nothing that it sends meanwhile, however slowly, keeps it open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Final

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vmpool.config import ApiSettings

log = logging.getLogger(__name__)

LOOKS: Final = 4
"""Looks at the connections in the time that a stranger has: it may have a quarter more."""


class Door:
    """The connections of one server.

    Attributes:
        patience: Seconds that a stranger has.
    """

    def __init__(self, settings: ApiSettings) -> None:
        self._most = settings.connections
        self.patience = settings.stranger_timeout
        self._strangers: dict[object, float] = {}
        self._admitted: set[object] = set()
        self._next_look: asyncio.TimerHandle | None = None

    def admit(self, request: web.Request) -> None:
        """Note that a request was let in: its connection is no stranger's any more."""
        self._admitted.add(request.protocol)

    @contextlib.contextmanager
    def visiting(self, request: web.Request) -> Iterator[None]:
        """Let a stranger stay for a block; afterwards its connection is as it was."""
        if request.protocol in self._admitted:  # one that has shown a good token already
            yield
            return
        self._admitted.add(request.protocol)
        try:
            yield
        finally:
            self._admitted.discard(request.protocol)

    def is_full(self, serving: web.Server, *, arriving: int) -> bool:
        """Tell whether one connection more is too many.

        Args:
            arriving: How many are there that nobody talks to yet.
        """
        if len(serving.connections) + arriving < self._most:
            return False
        log.warning("over %d connections: one more was closed", self._most)
        return True

    def meet(self, serving: web.Server) -> asyncio.Protocol:
        """Return who talks to a new connection."""
        if len(serving.connections) >= self._most:
            return _Refusal(self._most)
        if self._next_look is None:
            self._look_later(serving)
        return serving()

    def close(self) -> None:
        """Look no more. *Idempotent.*"""
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    def _look_later(self, serving: web.Server) -> None:
        loop = asyncio.get_running_loop()
        self._next_look = loop.call_later(self.patience / LOOKS, self._look, serving)

    def _look(self, serving: web.Server) -> None:
        """Close the strangers' connections that are old; what has closed by itself is forgotten."""
        now = asyncio.get_running_loop().time()
        connections = set(serving.connections)
        self._admitted &= connections
        self._strangers = {
            one: self._strangers.get(one, now) for one in connections - self._admitted
        }
        for one in connections - self._admitted:
            if now - self._strangers[one] >= self.patience and one.transport is not None:
                log.info("a connection without a token was closed after %s s", self.patience)
                one.transport.abort()
        self._look_later(serving)


class _Refusal(asyncio.Protocol):
    """Closes a connection as soon as it is made."""

    def __init__(self, most: int) -> None:
        self._most = most

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        log.warning("over %d connections: one more was closed", self._most)
        transport.close()


DOOR: Final = web.AppKey("door", Door)
