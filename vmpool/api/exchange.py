"""Exchange: one HTTP request to a server in a guest, and its answer.

It owns h11, which takes the hostile end's bytes apart: a head, a chunk's and a trailer's size are
bounded, and what is no HTTP is refused in words. Each exchange has a connection of its own, so an
answer cannot be taken for another's.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import h11

from vmpool.errors import InvalidRequestError, TaskError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from vmpool.api.traffic import Traffic

T = TypeVar("T")

HEAD_BYTES: Final = 64 << 10
"""What a status line with its headers may hold; h11's own limit, made explicit and wider."""

_MOST_NEWS: Final = 16
"""Interim answers (1xx) before the one that counts."""

_LAST_STATUS: Final = 599
_SWITCHING: Final = 101


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The beginning of an answer.

    Attributes:
        status: 101 when the connection speaks another protocol from here on; else 200 to 599.
        headers: As they came, each checked for its form.
    """

    status: int
    headers: list[tuple[str, str]]

    @property
    def switches(self) -> bool:
        """Whether the connection speaks another protocol from here on."""
        return self.status == _SWITCHING


class Exchange:
    """A request that goes out and an answer that comes, both as streams.

    One task may send while another receives.
    """

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)

    async def ask(self, method: str, target: str, headers: list[tuple[str, str]]) -> None:
        """Send the request without its body.

        Raises:
            InvalidRequestError: `request_unspeakable`; HTTP/1.1 has no words for it.
            GuestError: The guest is lost.
        """
        try:
            request = h11.Request(
                method=method.encode("ascii"),
                target=target.encode("ascii"),
                headers=[(name.encode(), _encoded(value)) for name, value in headers],
            )
            data = self._http.send(request)
        except (h11.LocalProtocolError, UnicodeEncodeError) as err:
            raise InvalidRequestError(
                f"the request cannot be handed on: {err}", code="request_unspeakable"
            ) from err
        assert data is not None
        await self._traffic.send(data)

    async def send(self, data: bytes) -> bool:
        """Send a piece of the body; return whether the guest may still take more.

        Raises:
            InvalidRequestError: `invalid_body`; it is longer than was said.
            GuestError: The guest is lost.
        """
        return await self._send(h11.Data(data=data))

    async def finish(self) -> None:
        """Send the end of the body.

        Raises:
            InvalidRequestError: `invalid_body`; it is shorter than was said.
            GuestError: The guest is lost.
        """
        await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Event) -> bool:
        if self._http.our_state is not h11.SEND_BODY:
            return False  # the answer has come, or is none: the rest interests nobody
        try:
            data = self._http.send(event)
        except h11.LocalProtocolError as err:
            raise InvalidRequestError(
                f"the request body is broken: {err}", code="invalid_body"
            ) from err
        return not data or await self._traffic.send(data)

    async def head(self) -> Head:
        """Return the beginning of the answer; interim ones are passed over.

        Raises:
            TaskError: `port_answer_malformed`: it is no HTTP, or too large. Or the connection
                failed.
            GuestError: The guest is lost.
        """
        for _ in range(_MOST_NEWS):
            event = await self._next()
            if isinstance(event, h11.InformationalResponse) and event.status_code != _SWITCHING:
                continue
            if isinstance(event, h11.Response | h11.InformationalResponse):
                if event.status_code > _LAST_STATUS:
                    break
                headers = [(name.decode(), _decoded(value)) for name, value in event.headers]
                return Head(status=event.status_code, headers=headers)
            break
        raise _malformed("it is no answer to the request")

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the answer's body as it comes.

        Raises:
            TaskError: `port_answer_malformed`: it broke off, or is broken. Or the connection
                failed.
            GuestError: The guest is lost.
        """
        while True:
            event = await self._next()
            if isinstance(event, h11.Data):
                if event.data:
                    yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return
            else:
                raise _malformed("its end is missing")

    @property
    def rest(self) -> bytes:
        """What came behind the head of an answer that switches the protocol."""
        return bytes(self._http.trailing_data[0])

    async def _next(self) -> h11.Event:
        while True:
            event = _understood(self._http.next_event)
            if isinstance(event, h11.Event):
                return event
            if event is h11.PAUSED:
                raise _malformed("there is more than an answer")
            data = await self._traffic.receive()
            if not data and self._http.their_state is h11.SEND_RESPONSE:
                raise _malformed("it closed the connection without an answer")
            self._take(data)

    def _take(self, data: bytes) -> None:
        _understood(lambda: self._http.receive_data(data))


def _understood(step: Callable[[], T]) -> T:
    try:
        return step()
    except h11.RemoteProtocolError as err:
        raise _malformed(str(err)) from err


def _malformed(why: str) -> TaskError:
    return TaskError(
        f"the server in the guest does not speak HTTP as it should: {why[:200]}",
        code="port_answer_malformed",
        remedy="for other protocols: vmpool port-forward",
    )


def _encoded(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def _decoded(value: bytes) -> str:
    """Return a header that can be sent on; what is not UTF-8 is what it was before that came up."""
    with contextlib.suppress(UnicodeDecodeError):
        return value.decode()
    return value.decode("latin-1")
