"""Services: what a slot offers beside packets: names, the word about denials, captures.

Entered when a sandbox takes the slot, or when another server's sandbox is adopted with it; left
before the slot is given back.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

from vmpool.cancellation import opened
from vmpool.errors import ConflictError, HostError
from vmpool.network import packet_log
from vmpool.network.addressing import GATEWAY
from vmpool.network.capture import capturing
from vmpool.network.namespace import call_in
from vmpool.network.packet_log import PacketLog
from vmpool.network.permission import Permission
from vmpool.network.resolver import Resolver

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable
    from ipaddress import IPv4Network
    from types import TracebackType

    from vmpool.egress import NetworkPolicy
    from vmpool.network.capture import Capture, CaptureLimits
    from vmpool.network.events import Denial, EventLog
    from vmpool.network.namespace import Namespace
    from vmpool.network.resolver import Opening
    from vmpool.network.upstream import Upstream

PORT: Final = 53
_BACKLOG = 8
_BUFFER_BYTES = 128 << 10  # some hundred questions; what a flood has beyond is lost


class Services:
    """What one slot offers, from entering to leaving.

    Args:
        policy: What holds at first.
        protected: Addresses of this host, beyond `plan.PROTECTED`.
        closed: Those that no policy opens.
        events: Where denials are noted; the caller's, so that it may outlive the slot.
    """

    def __init__(
        self,
        namespace: Namespace,
        policy: NetworkPolicy,
        *,
        protected: Iterable[IPv4Network] = (),
        closed: Iterable[IPv4Network] = (),
        upstream: Upstream,
        open_addresses: Opening,
        events: EventLog,
    ) -> None:
        self.events = events
        self._namespace = namespace
        self._protected = tuple(protected)
        self._closed = tuple(closed)
        self._permission = self._permitted(policy)
        self._upstream = upstream
        self._open_addresses = open_addresses
        self._resolver: Resolver | None = None
        self._capture: Capture | None = None
        self._capturing = False
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Begin to answer and to note.

        Raises:
            HostError: `network_failed`; the slot is gone, or the kernel refused.
        """
        sockets = await opened(self._open)
        resolver = Resolver(
            datagrams=sockets.datagrams,
            listener=sockets.listener,
            permission=self._permission,
            upstream=self._upstream,
            open_addresses=self._open_addresses,
            events=self.events,
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(sockets.close)
            told = PacketLog(sockets.denials, self._note, lose=self.events.lose)
            stack.enter_context(told)
            self._resolver = await stack.enter_async_context(resolver)
            stack.callback(self._end_capture)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Answer no more; a capture comes to its end."""
        await self._stack.aclose()

    def replace(self, policy: NetworkPolicy) -> None:
        """Let another policy hold, for questions under way as well. *Idempotent.*"""
        self._permission = self._permitted(policy)
        if self._resolver is not None:
            self._resolver.permission = self._permission

    @contextlib.asynccontextmanager
    async def capture(self, limits: CaptureLimits) -> AsyncIterator[Capture]:
        """Capture packets for the time of a block, unless somebody does already.

        Raises:
            ConflictError: `capture_running`.
            HostError: `network_failed`.
        """
        if self._capturing:
            raise ConflictError(
                "packets of this sandbox are being captured already", code="capture_running"
            )
        self._capturing = True
        try:
            async with capturing(self._namespace, limits) as capture:
                self._capture = capture
                yield capture
        finally:
            self._capture = None
            self._capturing = False

    def _permitted(self, policy: NetworkPolicy) -> Permission:
        return Permission.of(policy, protected=self._protected, closed=self._closed)

    def _end_capture(self) -> None:
        if self._capture is not None:
            self._capture.stop()

    def _note(self, denial: Denial) -> None:
        name = None
        if self._resolver is not None and denial.destination is not None:
            name = self._resolver.name_of(denial.destination)
        self.events.add(replace(denial, name=name))

    def _open(self) -> _Sockets:
        """Open all that is needed. Blocks."""

        def bind() -> tuple[socket.socket, socket.socket]:
            with contextlib.ExitStack() as undo:
                bound = []
                for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                    one = undo.enter_context(socket.socket(socket.AF_INET, kind))
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    one.bind((str(GATEWAY), PORT))
                    one.setblocking(False)
                    bound.append(one)
                bound[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
                bound[1].listen(_BACKLOG)
                undo.pop_all()
            return bound[0], bound[1]

        denials = packet_log.listen(self._namespace)
        try:
            return _Sockets(denials, *call_in(self._namespace, bind))
        except OSError as err:
            denials.close()
            raise HostError(
                f"cannot answer names in {self._namespace.name!r}: {err.strerror}",
                code="network_failed",
            ) from err
        except BaseException:
            denials.close()
            raise


@dataclass(frozen=True, slots=True)
class _Sockets:
    """What the services of a slot listen on."""

    denials: socket.socket
    datagrams: socket.socket
    listener: socket.socket

    def close(self) -> None:
        """Close them. *Idempotent.*"""
        for each in (self.denials, self.datagrams, self.listener):
            each.close()
