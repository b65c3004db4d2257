"""Remote: a vmpool server as the command line sees it, over HTTP.

One connection, one request at a time, blocking; on the standard library's client, because it starts
in a tenth of the time that an asynchronous one takes to import. A problem document from the server
becomes the error of `vmpool.errors` that it was there.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from vmpool.client.problem import certificate_refused, error_of
from vmpool.client.repetition import Repetition
from vmpool.errors import (
    HostError,
    InfrastructureError,
    InvalidRequestError,
    UnauthorizedError,
    VmpoolError,
)
from vmpool.model import new_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from vmpool.client.endpoint import Endpoint

ANSWER_LIMIT_BYTES = 256 << 20
"""A JSON answer over this is not one of ours: output and files of a run stay far below it."""

LINE_LIMIT_BYTES = 4 << 20
"""One line of a streamed answer; a chunk of output is 64 KiB before it is encoded."""

CHUNK_BYTES = 1 << 18

CONNECT_TIMEOUT = 10.0


class Remote:
    """Requests to one server; close it when done."""

    def __init__(self, endpoint: Endpoint, *, timeout: float | None = None) -> None:
        """Connect to nothing yet.

        Args:
            endpoint: The server.
            timeout: Seconds without a byte after which the server counts as lost; `None` waits for
                as long as the work takes, which the server limits.
        """
        self.endpoint = endpoint
        self._timeout = timeout
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Drop the connection; the server ends what it was doing for it. *Idempotent.*"""
        if self._connection is not None:
            self._connection.close()

    def once(self, path: str, body: object) -> Any:
        """Have something done; return the decoded answer.

        Sent again when the answer is lost, and done once all the same.

        Raises:
            VmpoolError: As `call`.
        """
        key, repetition = new_id(), Repetition()
        while True:
            try:
                return self.call("POST", path, body, key=key)
            except InfrastructureError as err:
                pause = repetition.pause_after(err)
                if pause is None:
                    raise
            time.sleep(pause)

    def call(self, method: str, path: str, body: object = None, *, key: str = "") -> Any:
        """Send a request, with a JSON body if there is one; return the decoded answer or `None`.

        Args:
            key: Idempotency key, of a request with a body.

        Raises:
            VmpoolError: The server's error; or `no_server`, `server_lost`, `not_vmpool`.
        """
        opened = (
            self.open(method, path) if body is None else self.open_json(method, path, body, key=key)
        )
        with opened as answer:
            received = read(answer)
        if not received:
            return None
        try:
            return json.loads(received)
        except ValueError as err:
            raise self._stranger("its answer is not JSON") from err

    def open_json(
        self, method: str, path: str, body: object, *, key: str = ""
    ) -> contextlib.AbstractContextManager[http.client.HTTPResponse]:
        """Send a request with a JSON body, as `open`."""
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Idempotency-Key"] = key
        return self.open(method, path, body=json.dumps(body).encode(), headers=headers)

    @contextlib.contextmanager
    def open(
        self,
        method: str,
        path: str,
        *,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request and yield a good answer with its body unread.

        A body that is not bytes is sent in chunks as it comes.

        Raises:
            VmpoolError: As `call`.
        """
        sent = {"Accept": "application/json", **(headers or {})}
        if self.endpoint.token:
            sent["Authorization"] = f"Bearer {self.endpoint.token}"
        connection = self._connected()
        try:
            with _server_watched():
                connection.request(
                    method,
                    path,
                    body=body,
                    headers=sent,
                    encode_chunked=not isinstance(body, bytes),
                )
                answer = connection.getresponse()
            if answer.status >= http.client.BAD_REQUEST:
                raise self._problem(answer)
            yield answer
        finally:
            connection.close()

    def _connected(self) -> http.client.HTTPConnection:
        url = urlsplit(self.endpoint.url)
        kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}.get(
            url.scheme
        )
        try:
            address = (url.hostname, url.port)
        except ValueError:
            address = (None, None)
        if kind is None or address[0] is None:
            raise InvalidRequestError(
                f"{self.endpoint.url!r} is no server's address",
                code="invalid_server",
                remedy="give one like --server http://127.0.0.1:8700",
            )
        connection: http.client.HTTPConnection = kind(
            address[0], address[1], timeout=CONNECT_TIMEOUT
        )
        try:
            connection.connect()
        except ssl.SSLCertVerificationError as err:
            raise certificate_refused(self.endpoint.url, err) from err
        except OSError as err:
            raise HostError(
                f"no server answers at {self.endpoint.url}: {_words(err)}",
                code="no_server",
                remedy="start one: vmpool up  (or name another: --server URL, --state DIR)",
            ) from err
        assert connection.sock is not None
        connection.sock.settimeout(self._timeout)
        self._connection = connection
        return connection

    def _problem(self, answer: http.client.HTTPResponse) -> VmpoolError:
        """Return the error that an answer tells of."""
        try:
            error = error_of(json.loads(read(answer)))
        except (ValueError, KeyError, TypeError, AttributeError):
            return self._stranger(f"status {answer.status} without a problem document")
        if answer.status == http.client.UNAUTHORIZED:
            remedy = self.endpoint.token_remedy or UNAUTHORIZED_REMEDY
            return UnauthorizedError(error.message, code=error.error_code, remedy=remedy)
        return error

    def _stranger(self, what: str) -> VmpoolError:
        return InfrastructureError(
            f"what answers at {self.endpoint.url} is not a vmpool server: {what}",
            code="not_vmpool",
            remedy="name the right one: --server URL, or VMPOOL_SERVER",
        )


UNAUTHORIZED_REMEDY = "make one on the server's host: vmpool token create NAME; \
then give it by VMPOOL_TOKEN or --token-file"


def lines(answer: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """Yield the objects of a streamed answer, one per line, as they arrive.

    Raises:
        InfrastructureError: As `decode_event`, or `server_lost`.
    """
    while line := _read_line(answer):
        yield decode_event(line)


def decode_event(line: bytes | str) -> dict[str, Any]:
    """Return one event of a running program.

    Raises:
        InfrastructureError: `not_vmpool` when it is too long or no JSON object.
    """
    try:
        event = json.loads(line) if len(line) <= LINE_LIMIT_BYTES else None
    except ValueError:
        event = None
    if not isinstance(event, dict):
        raise InfrastructureError("the server's stream broke its form", code="not_vmpool")
    return event


def chunks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield an answer's body as it arrives.

    Raises:
        InfrastructureError: `server_lost` when it broke off before its end.
    """
    while chunk := _read_chunk(answer):
        yield chunk


def path(*segments: str, **query: str | int | tuple[str, ...] | None) -> str:
    """Return a request path, segments and query quoted; `None` is left out, a tuple repeats."""
    joined = "/".join(("", "v1", *(quote(segment, safe="") for segment in segments)))
    given = {name: value for name, value in query.items() if value is not None}
    return f"{joined}?{urlencode(given, doseq=True)}" if given else joined


def read(answer: http.client.HTTPResponse) -> bytes:
    """Return the whole of an answer that is not streamed.

    Raises:
        InfrastructureError: `not_vmpool` when it is too long, or as `chunks`.
    """
    received = bytearray()
    for chunk in chunks(answer):
        received += chunk
        if len(received) > ANSWER_LIMIT_BYTES:
            raise InfrastructureError(
                f"the server's answer is over {ANSWER_LIMIT_BYTES} bytes", code="not_vmpool"
            )
    return bytes(received)


def _read_line(answer: http.client.HTTPResponse) -> bytes:
    with _server_watched():
        return answer.readline(LINE_LIMIT_BYTES + 1)


def _read_chunk(answer: http.client.HTTPResponse) -> bytes:
    with _server_watched():
        chunk = answer.read1(CHUNK_BYTES)
        if not chunk and answer.length:
            raise http.client.IncompleteRead(b"", answer.length)
        return chunk


@contextlib.contextmanager
def _server_watched() -> Iterator[None]:
    """Turn a failure to send or receive into our error."""
    try:
        yield
    except (OSError, http.client.HTTPException) as err:
        raise InfrastructureError(
            f"lost the server: {_words(err)}",
            code="server_lost",
            remedy="whether the request took effect is unknown; look at the server's log",
        ) from err


def _words(err: Exception) -> str:
    return (err.strerror if isinstance(err, OSError) else None) or str(err) or type(err).__name__
