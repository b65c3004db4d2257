"""Connection: requests to one server, and what can go wrong between it and us.

It owns aiohttp. A request is sent again only where that is safe: it reads, it says the same again,
or it carries an idempotency key.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import msgspec

from vmpool.client.problem import certificate_refused, error_of
from vmpool.client.repetition import Repetition
from vmpool.errors import (
    HostError,
    InfrastructureError,
    InvalidRequestError,
    UnauthorizedError,
    VmpoolError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterator

    from vmpool.client.endpoint import Endpoint

ANSWER_LIMIT_BYTES = 256 << 20
"""A JSON answer over this is not one of ours: output and files of a run stay far below it."""

LINE_LIMIT_BYTES = 4 << 20
"""One line of a stream; a chunk of output is 64 KiB before it is encoded, what is shown 1 MiB."""

CONNECT_TIMEOUT = 10.0

KEEPALIVE_SECONDS = 30, 10, 3
"""Idle time, interval and number of probes after which a silent peer's connection is broken."""

WHERE_FROM = "make one on the server's host: vmpool token create NAME; \
then give it as `token`, or by VMPOOL_TOKEN"
"""What to do when a server asks for a token and none is known."""

OTHER_SERVER = "name another: Client('http://HOST:PORT'), or VMPOOL_SERVER"


class Repeat(Enum):
    """Whether a request whose answer was lost is sent again."""

    NEVER = "never"
    WHEN_LOST = "when lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is sent.

    Attributes:
        path: With its query; see `path_of`.
        body: JSON to be, `None` for no body.
        key: Idempotency key, empty for none.
    """

    method: str
    path: str
    body: Mapping[str, object] | None = None
    key: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


class Connection:
    """Requests to one server, over as many connections as run at once. Close it when done.

    Args:
        endpoint: The server.
        timeout: Seconds without a byte after which the server counts as silent; `None` waits for as
            long as the work takes, which the server limits.
    """

    def __init__(self, endpoint: Endpoint, *, timeout: float | None = None) -> None:
        self.endpoint = endpoint
        self._timeout = timeout
        self._opened: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Drop all connections; the server ends what it was doing for them. *Idempotent.*"""
        if self._opened is not None:
            await self._opened.close()

    async def call(self, request: Request, *, repeat: Repeat = Repeat.NEVER) -> bytes:
        """Send a request and return its answer's body.

        Raises:
            VmpoolError: The server's error; or `no_server`, `server_lost`, `server_silent`,
                `not_vmpool`. After the last two but one whether it took effect is unknown.
        """
        repetition = Repetition()
        while True:
            try:
                async with self.open(request) as response:
                    return await self.read(response)
            except InfrastructureError as err:
                pause = repetition.pause_after(err) if repeat is Repeat.WHEN_LOST else None
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    @contextlib.asynccontextmanager
    async def open(
        self, request: Request, *, content: AsyncIterable[bytes] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and yield a good answer with its body unread.

        Leaving the block before the answer's end breaks the connection.

        Args:
            request: What is sent.
            content: Raw body, sent in chunks as it comes.

        Raises:
            VmpoolError: As `call`.
        """
        data: bytes | AsyncIterable[bytes] | None = content
        headers = dict(request.headers)
        if request.key:
            headers["Idempotency-Key"] = request.key
        if request.body is not None:
            data, headers["Content-Type"] = _encode(request.body), "application/json"
        with self._watched():
            response = await self._session().request(
                request.method,
                self.endpoint.url + request.path,
                data=data,
                headers=headers,
                allow_redirects=False,  # a server of ours sends none, and the token is not theirs
            )
        async with response:
            if response.status >= 300:
                raise await self._problem(response)
            yield response
            if not response.content.at_eof():
                response.close()

    @contextlib.asynccontextmanager
    async def socket(self, path: str) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Open a WebSocket for the time of a block.

        Raises:
            VmpoolError: As `call`; a refusal has no problem document, so its words are ours.
        """
        with self._watched():
            try:
                opened = await self._session().ws_connect(
                    self.endpoint.url + path, max_msg_size=LINE_LIMIT_BYTES
                )
            except aiohttp.WSServerHandshakeError as err:
                raise self._stranger(f"status {err.status} in place of a WebSocket") from err
        async with opened:
            yield opened

    async def chunks(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Yield an answer's body as it arrives.

        Raises:
            InfrastructureError: `server_lost` when it broke off before its end.
        """
        while True:
            with self._watched():
                chunk = await response.content.readany()
            if not chunk:
                return
            yield chunk

    async def lines(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
        """Yield the lines of a streamed answer as they arrive.

        Raises:
            InfrastructureError: `not_vmpool` when one is too long, or as `chunks`.
        """
        rest = bytearray()
        async for chunk in self.chunks(response):
            *whole, last = chunk.split(b"\n")
            for line in whole:
                yield bytes(rest) + line
                rest.clear()
            rest += last
            if len(rest) > LINE_LIMIT_BYTES:
                raise self._stranger("its stream broke its form")
        if rest:
            yield bytes(rest)

    async def messages(self, opened: aiohttp.ClientWebSocketResponse) -> AsyncGenerator[str]:
        """Yield a WebSocket's messages of text until its end.

        Raises:
            InfrastructureError: `server_lost` when it broke off.
        """
        while True:
            with self._watched():
                message = await opened.receive()
            match message.type:
                case aiohttp.WSMsgType.TEXT:
                    yield message.data
                case aiohttp.WSMsgType.ERROR:
                    raise self._lost(opened.exception() or ConnectionError("broken"))
                case aiohttp.WSMsgType.BINARY:
                    raise self._stranger("its stream broke its form")
                case _:
                    return

    async def frames(self, opened: aiohttp.ClientWebSocketResponse) -> AsyncGenerator[bytes | str]:
        """Yield a WebSocket's messages until it is closed in order.

        Raises:
            InfrastructureError: `server_lost` when it broke off; with the server's own code when it
                said one.
        """
        while True:
            with self._watched():
                message = await opened.receive()
            match message.type:
                case aiohttp.WSMsgType.TEXT | aiohttp.WSMsgType.BINARY:
                    yield message.data
                case aiohttp.WSMsgType.CLOSE if message.data == aiohttp.WSCloseCode.OK:
                    return
                case aiohttp.WSMsgType.CLOSE if message.extra:
                    raise InfrastructureError("the server broke it off", code=str(message.extra))
                case _:
                    raise self._lost(opened.exception() or ConnectionError("broken"))

    async def send(self, opened: aiohttp.ClientWebSocketResponse, message: bytes | str) -> None:
        """Send one message over a WebSocket.

        Raises:
            InfrastructureError: `server_lost`.
        """
        with self._watched():
            if isinstance(message, str):
                await opened.send_str(message)
            else:
                await opened.send_bytes(message)

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            if not _is_address(self.endpoint.url):
                raise InvalidRequestError(
                    f"{self.endpoint.url!r} is no server's address",
                    code="invalid_server",
                    remedy="give one like http://127.0.0.1:8700",
                )
            headers = {"Accept-Encoding": "identity"}
            if not (self.endpoint.token.isascii() and self.endpoint.token.isprintable()):
                raise UnauthorizedError(
                    "the token holds what none can", code="token_invalid", remedy=WHERE_FROM
                )
            if self.endpoint.token:
                headers["Authorization"] = f"Bearer {self.endpoint.token}"
            self._opened = aiohttp.ClientSession(
                headers=headers,
                connector=aiohttp.TCPConnector(limit=0, socket_factory=_socket),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_TIMEOUT, sock_read=self._timeout
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                middlewares=(_send_once,),
            )
        if self._opened.closed:
            raise InvalidRequestError("the client is closed", remedy="make another one")
        return self._opened

    async def read(self, response: aiohttp.ClientResponse) -> bytes:
        received = bytearray()
        async for chunk in self.chunks(response):
            received += chunk
            if len(received) > ANSWER_LIMIT_BYTES:
                raise self._stranger(f"its answer is over {ANSWER_LIMIT_BYTES} bytes")
        return bytes(received)

    async def _problem(self, response: aiohttp.ClientResponse) -> VmpoolError:
        """Return the error that an answer tells of."""
        received = await self.read(response)
        try:
            error = error_of(msgspec.json.decode(received))
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
            return self._stranger(f"status {response.status} without a problem document")
        if isinstance(error, UnauthorizedError):
            error.remedy = self.endpoint.token_remedy or WHERE_FROM
        return error

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        """Turn a failure to send or receive into our error.

        That has its words, and not the library's frames above ours.
        """
        try:
            yield
        except aiohttp.ClientConnectorCertificateError as err:
            raise certificate_refused(self.endpoint.url, err.certificate_error) from None
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as err:
            raise HostError(
                f"no server answers at {self.endpoint.url}: {_words(err)}",
                code="no_server",
                remedy=f"start one: vmpool up  (or {OTHER_SERVER})",
            ) from None
        except aiohttp.SocketTimeoutError:
            raise InfrastructureError(
                f"the server said nothing for {self._timeout} s",
                code="server_silent",
                remedy="whether the request took effect is unknown; give the client more time",
            ) from None
        except _LostError as err:
            raise self._lost(err.cause) from None
        except (aiohttp.ClientError, ConnectionError) as err:
            if isinstance(err.__cause__, VmpoolError):  # of what was to be sent
                raise err.__cause__ from None
            raise self._lost(err) from None

    def _lost(self, err: BaseException) -> InfrastructureError:
        return InfrastructureError(
            f"lost the server: {_words(err)}",
            code="server_lost",
            remedy="whether the request took effect is unknown; look at the server's log",
        )

    def _stranger(self, what: str) -> InfrastructureError:
        return InfrastructureError(
            f"what answers at {self.endpoint.url} is not a vmpool server: {what}",
            code="not_vmpool",
            remedy=OTHER_SERVER,
        )


class _LostError(Exception):
    """The connection broke before an answer came."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(str(cause))
        self.cause = cause


async def _send_once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a PUT or DELETE again by itself, which it does for its own errors.

    A removal would be told to have failed, and an upload would go on in the middle.
    """
    try:
        return await handler(request)
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError):
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as err:
        raise _LostError(err) from err


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def path_of(*segments: str, **query: str | int | list[str] | None) -> str:
    """Return a request path, segments and query quoted; `None` is left out, a list repeats."""
    joined = "/".join(("", "v1", *(quote(segment, safe="") for segment in segments)))
    given = {name: value for name, value in query.items() if value is not None}
    return f"{joined}?{urlencode(given, doseq=True)}" if given else joined


def _encode(body: Mapping[str, object]) -> bytes:
    try:
        return msgspec.json.encode(body)
    except (TypeError, UnicodeEncodeError) as err:
        raise InvalidRequestError(f"the request cannot be written as JSON: {err}") from err


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Return a socket whose connection breaks when its peer is gone without a word."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        options = socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT
        for option, value in zip(options, KEEPALIVE_SECONDS, strict=True):
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def _words(err: BaseException) -> str:
    if isinstance(err, OSError) and err.errno is not None and err.errno > 0:
        return os.strerror(err.errno)  # asyncio's own words name a call and a tuple
    return (err.strerror if isinstance(err, OSError) else None) or str(err) or type(err).__name__
