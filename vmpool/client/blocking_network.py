"""Blocking network: that of a sandbox for code without asyncio.

Each call is that of `AsyncNetwork`, made through a portal; what it does, takes and raises is said
there.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from vmpool.client.portal import Portal, entered, iterated

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Unpack

    from vmpool.client.network import AsyncNetwork, NetworkDenial, NetworkDenials, NetworkInfo
    from vmpool.client.options import NetworkOptions


class Network:
    """The network of one sandbox, as `AsyncNetwork`."""

    def __init__(self, portal: Portal, behind: AsyncNetwork) -> None:
        self._portal = portal
        self._behind = behind

    def show(self) -> NetworkInfo:
        """As `AsyncNetwork.show`."""
        return self._portal.call(self._behind.show())

    def set(self, **network: Unpack[NetworkOptions]) -> NetworkInfo:
        """As `AsyncNetwork.set`."""
        return self._portal.call(self._behind.set(**network))

    def events(self, *, after: str | None = None) -> NetworkDenials:
        """As `AsyncNetwork.events`."""
        return self._portal.call(self._behind.events(after=after))

    @contextlib.contextmanager
    def follow(self, *, after: str | None = None) -> Iterator[Iterator[NetworkDenial]]:
        """As `AsyncNetwork.follow`."""
        with entered(self._portal, self._behind.follow(after=after)) as denials:
            yield iterated(self._portal, denials)

    @contextlib.contextmanager
    def capture(
        self, *, seconds: float | None = None, size_bytes: int | None = None
    ) -> Iterator[Iterator[bytes]]:
        """As `AsyncNetwork.capture`."""
        block = self._behind.capture(seconds=seconds, size_bytes=size_bytes)
        with entered(self._portal, block) as pieces:
            yield iterated(self._portal, pieces)

    def capture_to(
        self,
        target: Path | str,
        *,
        seconds: float | None = None,
        size_bytes: int | None = None,
    ) -> None:
        """As `AsyncNetwork.capture_to`."""
        captured = self._behind.capture_to(target, seconds=seconds, size_bytes=size_bytes)
        self._portal.call(captured)
