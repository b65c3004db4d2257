"""Ports: what listens in a sandbox, seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from vmpool.client.connection import Connection, Repeat, Request, path_of
from vmpool.client.values import read
from vmpool.errors import HostError, InfrastructureError, NotFoundError, VmpoolError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    import aiohttp

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 16

_END = '{"eof":true}'


@dataclass(frozen=True, slots=True, kw_only=True)
class PortInfo:
    """One port of a sandbox.

    Attributes:
        access: `private`, or `public`: everybody may reach it.
        path: Below which it is found on the server.
        host: Its own host name, where the server has a domain for that.
    """

    port: int
    access: str
    path: str
    host: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficToken:
    """What opens one port of a sandbox, or all where `port` is `None`, and nothing else.

    Attributes:
        token: For the header `vmpool-traffic-token`; only when it was just made.
    """

    id: str
    port: int | None
    created_at: datetime
    token: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class PortList:
    """Who may reach which ports; `access` holds for those that `ports` does not name."""

    access: str
    domain: str | None
    ports: tuple[PortInfo, ...]
    tokens: tuple[TrafficToken, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """A port of this machine that leads to one of a sandbox."""

    host: str
    port: int

    @property
    def url(self) -> str:
        """The same for a client of HTTP."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


class AsyncPorts:
    """The ports of one sandbox. Part of it; `ports[8000]` is one of them."""

    def __init__(self, connection: Connection, sandbox: str) -> None:
        self._connection = connection
        self._sandbox = sandbox

    def __getitem__(self, port: int) -> AsyncPort:
        """Return a port; the server is asked nothing."""
        return AsyncPort(self._connection, self._sandbox, port)

    async def list(self) -> PortList:
        """Return who may reach which.

        Raises:
            VmpoolError: There is no such sandbox, or the server was lost.
        """
        return read(await self._ask("GET"), PortList)

    async def publish(self) -> PortList:
        """Let everybody reach all ports, those included that were set apart. *Idempotent.*

        Raises:
            VmpoolError: As `list`.
        """
        return read(await self._ask("PUT", access="public"), PortList)

    async def conceal(self) -> PortList:
        """Let nobody without a token reach any port. *Idempotent.*

        Raises:
            VmpoolError: As `list`.
        """
        return read(await self._ask("PUT", access="private"), PortList)

    async def token(self) -> TrafficToken:
        """Make a token that opens all ports and nothing else. *Not idempotent.*

        Raises:
            CapacityError: `traffic_tokens_full`.
            VmpoolError: As `list`.
        """
        return await make_token(self._connection, self._sandbox, None)

    async def revoke(self, token: TrafficToken | str) -> None:
        """Make a traffic token useless, given itself or its id. *Idempotent.*

        Raises:
            VmpoolError: As `list`.
        """
        id = token if isinstance(token, str) else token.id
        path = path_of("sandboxes", self._sandbox, "ports", "tokens", id)
        try:
            await self._connection.call(
                Request(method="DELETE", path=path), repeat=Repeat.WHEN_LOST
            )
        except NotFoundError as err:
            if err.error_code != "traffic_token_not_found":
                raise

    async def _ask(self, method: str, **body: str) -> bytes:
        path = path_of("sandboxes", self._sandbox, "ports")
        request = Request(method=method, path=path, body=body or None)
        return await self._connection.call(request, repeat=Repeat.WHEN_LOST)


class AsyncPort:
    """One port of a sandbox, whether or not something listens there.

    Attributes:
        number: From 1 to 65535.
    """

    def __init__(self, connection: Connection, sandbox: str, number: int) -> None:
        self.number = number
        self._connection = connection
        self._sandbox = sandbox

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._sandbox}:{self.number}>"

    @property
    def url(self) -> str:
        """Where it is found on the server, with a `/` at the end; private unless made public."""
        return f"{self._connection.endpoint.url}{self._path}/"

    async def look(self) -> PortInfo:
        """Return who may reach it, and under which name.

        Raises:
            VmpoolError: There is no such sandbox, or the server was lost.
        """
        return await self._ask("GET")

    async def publish(self) -> PortInfo:
        """Let everybody reach it who reaches the server. *Idempotent.*

        Raises:
            VmpoolError: As `look`.
        """
        return await self._ask("PUT", access="public")

    async def conceal(self) -> PortInfo:
        """Let nobody without a token reach it. *Idempotent.*

        Raises:
            VmpoolError: As `look`.
        """
        return await self._ask("PUT", access="private")

    async def token(self) -> TrafficToken:
        """Make a token that opens it and nothing else. *Not idempotent.*

        Raises:
            CapacityError: `traffic_tokens_full`.
            VmpoolError: As `look`.
        """
        return await make_token(self._connection, self._sandbox, self.number)

    @contextlib.asynccontextmanager
    async def forward(
        self,
        local_port: int = 0,
        *,
        host: str = "127.0.0.1",
        on_failure: Callable[[VmpoolError], None] | None = None,
    ) -> AsyncIterator[Forward]:
        """Have a port of this machine lead to it for the time of a block, for any protocol.

        Args:
            local_port: 0 for one that is free.
            host: Address of this machine to listen on.
            on_failure: Told of each connection that could not be made or broke off; by default the
                log is.

        Raises:
            HostError: `address_unusable`.
        """
        forwarder = _Forwarder(self._connection, self._tcp_path, on_failure or self._log)
        try:
            server = await asyncio.start_server(forwarder.accept, host, local_port)
        except OSError as err:
            raise HostError(
                f"cannot listen on {host!r}, port {local_port}: {err.strerror or err}",
                code="address_unusable",
                remedy="give another port, or stop what listens there",
            ) from err
        try:
            bound = server.sockets[0].getsockname()
            yield Forward(host=bound[0], port=bound[1])
        finally:
            server.close()
            await forwarder.close()

    @property
    def _path(self) -> str:
        return path_of("sandboxes", self._sandbox, "ports", str(self.number))

    @property
    def _tcp_path(self) -> str:
        return path_of("sandboxes", self._sandbox, "tcp", str(self.number))

    def _log(self, error: VmpoolError) -> None:
        log.warning("sandbox=%s port=%d: %s", self._sandbox, self.number, error)

    async def _ask(self, method: str, **body: str) -> PortInfo:
        request = Request(method=method, path=self._path, body=body or None)
        return read(await self._connection.call(request, repeat=Repeat.WHEN_LOST), PortInfo)


async def make_token(connection: Connection, sandbox: str, port: int | None) -> TrafficToken:
    """Make a traffic token; see `AsyncPort.token`."""
    path = path_of("sandboxes", sandbox, "ports", "tokens")
    body = {} if port is None else {"port": port}
    return read(await connection.call(Request(method="POST", path=path, body=body)), TrafficToken)


class _Forwarder:
    """The connections of one forwarded port; each is carried over a WebSocket of its own."""

    def __init__(
        self, connection: Connection, path: str, on_failure: Callable[[VmpoolError], None]
    ) -> None:
        self._connection = connection
        self._path = path
        self._on_failure = on_failure
        self._carrying: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry a connection that was made to this machine's port."""
        task = asyncio.create_task(self._carry(reader, writer), name="forwarded connection")
        self._carrying.add(task)
        task.add_done_callback(self._carrying.discard)

    async def close(self) -> None:
        """Break off what is still carried."""
        carrying = list(self._carrying)
        for task in carrying:
            task.cancel()
        await asyncio.gather(*carrying, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with self._socket() as carrier, asyncio.TaskGroup() as group:
                sending = group.create_task(self._send(reader, carrier))
                await self._receive(carrier, writer)
                sending.cancel()
            writer.close()
        except* VmpoolError as errors:
            failure = errors.exceptions[0]
            assert isinstance(failure, VmpoolError)
            self._on_failure(failure)
        except* ConnectionError:
            pass  # whoever connected here has left
        finally:
            if not writer.is_closing():
                _reset(writer)

    @contextlib.asynccontextmanager
    async def _socket(self) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Open the socket; a refusal has no problem document, but the same without one does."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                carrier = await stack.enter_async_context(self._connection.socket(self._path))
            except InfrastructureError as err:
                if err.error_code == "not_vmpool":
                    await self._connection.call(Request(method="GET", path=self._path))
                raise
            yield carrier

    async def _send(
        self, reader: asyncio.StreamReader, carrier: aiohttp.ClientWebSocketResponse
    ) -> None:
        while data := await reader.read(CHUNK_BYTES):
            await self._connection.send(carrier, data)
        await self._connection.send(carrier, _END)

    async def _receive(
        self, carrier: aiohttp.ClientWebSocketResponse, writer: asyncio.StreamWriter
    ) -> None:
        """Hand on what comes until the socket is closed in order."""
        async for message in self._connection.frames(carrier):
            if isinstance(message, bytes):
                writer.write(message)
                await writer.drain()
            elif writer.can_write_eof():
                writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Break a connection so that its other end does not take half for the whole."""
    opened = writer.get_extra_info("socket")
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
