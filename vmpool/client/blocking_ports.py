"""Blocking ports: those of a sandbox for code without asyncio.

Each is the asynchronous one behind it, called through a portal; what a call does, takes and raises
is said there.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from vmpool.client.portal import entered

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmpool.client.portal import Portal
    from vmpool.client.ports import (
        AsyncPort,
        AsyncPorts,
        Forward,
        PortInfo,
        PortList,
        TrafficToken,
    )
    from vmpool.errors import VmpoolError


class Ports:
    """The ports of one sandbox, as `AsyncPorts`."""

    def __init__(self, portal: Portal, behind: AsyncPorts) -> None:
        self._portal = portal
        self._behind = behind

    def __getitem__(self, port: int) -> Port:
        """As `AsyncPorts.__getitem__`."""
        return Port(self._portal, self._behind[port])

    def list(self) -> PortList:
        """As `AsyncPorts.list`."""
        return self._portal.call(self._behind.list())

    def publish(self) -> PortList:
        """As `AsyncPorts.publish`. *Idempotent.*"""
        return self._portal.call(self._behind.publish())

    def conceal(self) -> PortList:
        """As `AsyncPorts.conceal`. *Idempotent.*"""
        return self._portal.call(self._behind.conceal())

    def token(self) -> TrafficToken:
        """As `AsyncPorts.token`."""
        return self._portal.call(self._behind.token())

    def revoke(self, token: TrafficToken | str) -> None:
        """As `AsyncPorts.revoke`. *Idempotent.*"""
        self._portal.call(self._behind.revoke(token))


class Port:
    """One port of a sandbox, as `AsyncPort`."""

    def __init__(self, portal: Portal, behind: AsyncPort) -> None:
        self.number = behind.number
        self._portal = portal
        self._behind = behind

    def __repr__(self) -> str:
        return repr(self._behind).replace("AsyncPort", type(self).__name__)

    @property
    def url(self) -> str:
        """As `AsyncPort.url`."""
        return self._behind.url

    def look(self) -> PortInfo:
        """As `AsyncPort.look`."""
        return self._portal.call(self._behind.look())

    def publish(self) -> PortInfo:
        """As `AsyncPort.publish`. *Idempotent.*"""
        return self._portal.call(self._behind.publish())

    def conceal(self) -> PortInfo:
        """As `AsyncPort.conceal`. *Idempotent.*"""
        return self._portal.call(self._behind.conceal())

    def token(self) -> TrafficToken:
        """As `AsyncPort.token`."""
        return self._portal.call(self._behind.token())

    @contextlib.contextmanager
    def forward(
        self,
        local_port: int = 0,
        *,
        host: str = "127.0.0.1",
        on_failure: Callable[[VmpoolError], None] | None = None,
    ) -> Iterator[Forward]:
        """As `AsyncPort.forward`; `on_failure` is called in another thread."""
        block = self._behind.forward(local_port, host=host, on_failure=on_failure)
        with entered(self._portal, block) as forward:
            yield forward
