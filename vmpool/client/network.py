"""Network: what a sandbox was denied, and the packets that pass its link."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from vmpool.client import values
from vmpool.client.connection import Connection, Repeat, Request, path_of
from vmpool.client.local_files import replacing
from vmpool.errors import InfrastructureError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator
    from typing import Unpack

    from vmpool.client.options import NetworkOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkDenial:
    """Something that a guest tried on the network and was denied.

    Attributes:
        cursor: Asks for what came after it.
        at: When; RFC 3339.
        protocol: `tcp`, `udp`, `icmp`, `dns`, or a number of IP's.
        destination: Where it was to go; for `dns` an address that an answer held, if that is why.
        port: `None` where the protocol has none.
        name: That was asked for, or that last led to the destination.
        rule: What denied it.
    """

    cursor: str
    at: str
    protocol: str
    destination: str | None
    port: int | None
    name: str | None
    rule: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkDenials:
    """What a server keeps of a sandbox's denials, oldest first.

    Attributes:
        cursor: Asks for what comes after them.
        lost: How many of all of the sandbox's are not kept.
    """

    events: tuple[NetworkDenial, ...]
    cursor: str
    lost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkTraffic:
    """Packets and bytes since the sandbox's present machine was connected."""

    sent_packets: int
    sent_bytes: int
    received_packets: int
    received_bytes: int
    denied_packets: int
    denied_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkInfo:
    """What a sandbox may reach.

    Attributes:
        mode: `none`, `restricted` or `open`.
        allow: Rules, each with the members of `NetworkRule`; `deny` likewise.
        bandwidth: Bytes a second, `up` and `down`; `None` for no limit.
        traffic: `None` while it is not connected.
    """

    mode: str
    allow: tuple[dict[str, Any], ...]
    deny: tuple[dict[str, Any], ...]
    bandwidth: dict[str, int | None]
    traffic: NetworkTraffic | None = None


class AsyncNetwork:
    """The network of one sandbox, seen from outside it."""

    def __init__(self, connection: Connection, sandbox_id: str) -> None:
        self._connection = connection
        self._path = ("sandboxes", sandbox_id, "network")

    async def show(self) -> NetworkInfo:
        """Return what it may reach, and what passed.

        Raises:
            NotFoundError: `sandbox_not_found` or `sandbox_ended`.
            VmpoolError: The server was lost.
        """
        request = Request(method="GET", path=path_of(*self._path))
        answer = await self._connection.call(request, repeat=Repeat.WHEN_LOST)
        return values.read(answer, NetworkInfo)

    async def set(self, **network: Unpack[NetworkOptions]) -> NetworkInfo:
        """Let it reach this from now on, for connections that there are as well. *Idempotent.*

        Args:
            network: See `NetworkOptions`.

        Raises:
            InvalidRequestError: `invalid_network`, `invalid_domain`.
            InfrastructureError: `network_unavailable`: the host has no networks to give.
            VmpoolError: As `show`.
        """
        request = Request(method="PUT", path=path_of(*self._path), body=dict(network))
        answer = await self._connection.call(request, repeat=Repeat.WHEN_LOST)
        return values.read(answer, NetworkInfo)

    async def events(self, *, after: str | None = None) -> NetworkDenials:
        """Return what was denied and is kept.

        Args:
            after: Only what came after this cursor.

        Raises:
            NotFoundError: `sandbox_not_found` or `sandbox_ended`.
            VmpoolError: The server was lost.
        """
        request = Request(method="GET", path=path_of(*self._path, "events", after=after))
        answer = await self._connection.call(request, repeat=Repeat.WHEN_LOST)
        found: list[NetworkDenial] = []
        lost = 0
        for line in answer.splitlines():
            match _read(line):
                case NetworkDenial() as denial:
                    found.append(denial)
                case int() as lost:
                    pass
        cursor = found[-1].cursor if found else after or "0"
        return NetworkDenials(events=tuple(found), cursor=cursor, lost=lost)

    @contextlib.asynccontextmanager
    async def follow(
        self, *, after: str | None = None
    ) -> AsyncIterator[AsyncIterator[NetworkDenial]]:
        """Yield what was denied and is kept, then what comes, for the time of a block.

        It ends with the sandbox. Who reads slowly misses some; cursors say where to go on.

        Args:
            after: Only what came after this cursor.

        Raises:
            VmpoolError: As `events`, while iterating too.
        """
        path = path_of(*self._path, "events", after=after, follow="true")
        async with (
            self._connection.open(Request(method="GET", path=path)) as response,
            aclosing(self._connection.lines(response)) as lines,
            aclosing(_denials(lines)) as denials,
        ):
            yield denials

    @contextlib.asynccontextmanager
    async def capture(
        self, *, seconds: float | None = None, size_bytes: int | None = None
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Yield a file of the packets that pass, in pieces, for the time of a block.

        It is of pcap's form, and begins when the block does. One capture of a sandbox runs at a
        time; it ends with the block, at its limits or with the sandbox.

        Args:
            seconds: How long; the server's default and most unless given or more.
            size_bytes: How much; likewise.

        Raises:
            ConflictError: `capture_running`, or the sandbox has no network.
            VmpoolError: As `events`.
        """
        given = None if seconds is None else str(seconds)
        path = path_of(*self._path, "capture", seconds=given, bytes=size_bytes)
        async with self._connection.open(Request(method="GET", path=path)) as response:
            yield self._connection.chunks(response)

    async def capture_to(
        self,
        target: Path | str,
        *,
        seconds: float | None = None,
        size_bytes: int | None = None,
    ) -> None:
        """Write the packets that pass into a file, which is replaced when all is there.

        Raises:
            InvalidRequestError: `file_unwritable`.
            VmpoolError: As `capture`.
        """
        async with self.capture(seconds=seconds, size_bytes=size_bytes) as pieces:
            with replacing(Path(target)) as file:
                async for piece in pieces:
                    await asyncio.to_thread(file.write, piece)


async def _denials(lines: AsyncGenerator[bytes]) -> AsyncGenerator[NetworkDenial]:
    async for line in lines:
        if isinstance(told := _read(line), NetworkDenial):
            yield told


def _read(line: bytes) -> NetworkDenial | int:
    """Return the denial of a line, or how many are lost."""
    try:
        told = msgspec.json.decode(line)
        if told["type"] == "lost":
            return msgspec.convert(told["count"], int)
        return msgspec.convert(told, NetworkDenial)
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError) as err:
        raise InfrastructureError("the server's stream broke its form", code="not_vmpool") from err
