"""Connect: the protocol of that name, as far as E2B's clients speak it: JSON over HTTP/1.1.

It makes endpoints of functions that take and return messages, and knows none of these. A call is
one message for one; or one for a stream of them, or a stream for one. Streams are framed (see
`envelope`), and errors in one are told in its last frame: its status is 200 whatever comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from contextlib import aclosing
from typing import TYPE_CHECKING, Final, TypeVar

from aiohttp import web
from msgspec import Struct

from vmpool.api import codec, edge, intake, outflow
from vmpool.api.budget import BUDGET
from vmpool.api.e2b import problem
from vmpool.api.e2b.envelope import END, MESSAGE, Frames, broken, enclose
from vmpool.api.e2b.stream import Stream
from vmpool.api.e2b.visit import Endpoint, Opening, Shape
from vmpool.errors import Fault, InvalidRequestError, TaskTimeoutError, VmpoolError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable

    from vmpool.api.budget import Loan
    from vmpool.api.e2b.visit import Visit

log = logging.getLogger(__name__)

T = TypeVar("T", bound=Struct)

STREAM: Final = "application/connect+json"
VERSION: Final = "1"

KEEPALIVE_SECONDS: Final = 90.0
"""How long a stream may say nothing, unless its client names another time."""

GRACE_SECONDS: Final = 1.0
"""How much later than its client a stream ends whose time is up: clients keep it themselves, and
what is ended in the guest at that time is still told."""

_TIMEOUT: Final = re.compile(r"[0-9]{1,10}")
_INTERVAL: Final = re.compile(r"[1-9][0-9]{0,3}")
_END: Final = enclose(END, b"{}")


class Nothing(Struct, frozen=True):
    """A message without content."""


NOTHING: Final = Nothing()


def unary(body: type[T], call: Callable[[Visit, T], Awaitable[Struct]]) -> Endpoint:
    """Return the endpoint that answers one message with one.

    Args:
        body: The message that it takes; members that it does not know are passed over.
    """

    async def run(visit: Visit) -> web.StreamResponse:
        _check_version(visit.request)
        timeout = timeout_of(visit.request)
        with visit.request.app[BUDGET].lend(visit.sandbox.owner) as loan:
            data = await intake.read_json(visit.request, visit.limits, loan)
            message = codec.decode(data, body)
            async with _within(timeout):
                answer = await call(visit, message)
        return web.Response(body=codec.encode(answer), content_type="application/json")

    return Endpoint(opening=Opening.TOKEN, shape=Shape.CONNECT, run=run)


def server_stream(
    body: type[T],
    call: Callable[[Visit, T], AsyncGenerator[Struct, None]],
    *,
    keepalive: Struct,
) -> Endpoint:
    """Return the endpoint that answers one message with a stream of them.

    Args:
        body: The message that it takes.
        call: Yields the answer; closed when the client leaves, or its time is up.
        keepalive: What is said when nothing else was for as long as the client named.
    """

    async def answer(visit: Visit, outgoing: _Outgoing) -> None:
        with visit.request.app[BUDGET].lend(visit.sandbox.owner) as loan:
            message = codec.decode(await _only_frame(visit, loan), body)
            async with outgoing.kept_alive(keepalive), aclosing(call(visit, message)) as messages:
                async for each in messages:
                    await outgoing.send(each)

    return _streaming(answer)


def client_stream(
    body: type[T], call: Callable[[Visit, AsyncIterator[T]], Awaitable[Struct]]
) -> Endpoint:
    """Return the endpoint that answers a stream of messages with one.

    Args:
        body: Each message that it takes.
        call: Takes them as they come; the client may keep it waiting for as long as it likes.
    """

    async def answer(visit: Visit, outgoing: _Outgoing) -> None:
        with visit.request.app[BUDGET].lend(visit.sandbox.owner) as loan:
            async with aclosing(_frames(visit, loan)) as frames, aclosing(_read(frames, body)) as m:
                reply = await call(visit, m)
            await outgoing.send(reply)

    return _streaming(answer)


def timeout_of(request: web.Request) -> float | None:
    """Return the seconds that a client gives a call, `None` for as many as it takes.

    Raises:
        InvalidRequestError: It is no number of milliseconds.
    """
    said = request.headers.get("Connect-Timeout-Ms")
    if said is None:
        return None
    if not _TIMEOUT.fullmatch(said):
        raise InvalidRequestError(f"connect-timeout-ms {said[:32]!r} is no number of milliseconds")
    return int(said) / 1000


def _streaming(answer: Callable[[Visit, _Outgoing], Awaitable[None]]) -> Endpoint:
    async def run(visit: Visit) -> web.StreamResponse:
        _check_stream(visit.request)
        timeout = timeout_of(visit.request)
        outgoing = _Outgoing(visit)
        try:
            async with _within(None if timeout is None else timeout + GRACE_SECONDS):
                await answer(visit, outgoing)
        except outflow.StalledError:
            raise
        except VmpoolError as err:
            # Only a connection that breaks off makes clients ask whether the sandbox is there.
            if visit.sandbox.over or not visit.sandbox.has_machine:
                raise
            _note(visit.request, err)
            await outgoing.finish(err)
        else:
            await outgoing.finish()
        return outgoing.response

    return Endpoint(opening=Opening.TOKEN, shape=Shape.CONNECT, run=run)


class _Outgoing:
    """The stream of messages to one client."""

    def __init__(self, visit: Visit) -> None:
        self._stream = Stream(visit, STREAM)
        self._interval = _interval_of(visit.request)

    @property
    def response(self) -> web.StreamResponse:
        """What carries it; its head goes out with the first message."""
        return self._stream.response

    async def send(self, message: Struct) -> None:
        """Send a message.

        Raises:
            StalledError: The client took nothing for too long.
        """
        await self._stream.send(enclose(MESSAGE, codec.encode(message)))

    async def finish(self, error: VmpoolError | None = None) -> None:
        """Say the last that is said, and why it is when it is for an error."""
        last = _END
        if error is not None:
            told = {"code": problem.word_of(error), "message": problem.message_of(error)}
            last = enclose(END, codec.encode_plain({"error": told}))
        await self._stream.finish(last)

    def kept_alive(self, keepalive: Struct) -> contextlib.AbstractAsyncContextManager[None]:
        """Say something every now and then, for a block, once its first message is out."""
        said = enclose(MESSAGE, codec.encode(keepalive))
        return self._stream.kept_alive(said, self._interval)


async def _only_frame(visit: Visit, loan: Loan) -> bytes:
    """Return the message of a stream that has one, all of which must come in time.

    Raises:
        InvalidRequestError: `invalid_body`; there is none, or more than one.
        CallerError: `body_timeout`.
    """
    messages: list[bytes] = []
    try:
        async with asyncio.timeout(visit.limits.published.body_seconds):
            async with aclosing(_frames(visit, loan)) as frames:
                async for message in frames:
                    messages.append(message)
                    if len(messages) > 1:
                        break
    except TimeoutError as err:
        raise intake.too_slow(visit.limits) from err
    if len(messages) != 1:
        raise broken(f"it has {'more than one frame' if messages else 'no frame'}, not one")
    return messages[0]


async def _frames(visit: Visit, loan: Loan) -> AsyncGenerator[bytes, None]:
    """Yield messages as they come; none that has begun may take too long."""
    frames = Frames(visit.limits.published.body_bytes)
    request, loop = visit.request, asyncio.get_running_loop()
    deadline: float | None = None
    await intake.go_on(request)
    while True:
        try:
            async with asyncio.timeout_at(deadline):
                data = await request.content.readany()
        except TimeoutError as err:
            raise intake.too_slow(visit.limits) from err
        except web.RequestPayloadError as err:
            raise intake.broken(err) from err
        if not data:
            break
        for message in frames.feed(data):
            yield message
            deadline = None
        if not frames.held_bytes:
            deadline = None
        elif deadline is None:
            deadline = loop.time() + visit.limits.published.body_seconds
        loan.grow_to(frames.held_bytes)
    frames.finish()


async def _read(frames: AsyncIterator[bytes], body: type[T]) -> AsyncGenerator[T, None]:
    async for frame in frames:
        yield codec.decode(frame, body)


@contextlib.asynccontextmanager
async def _within(timeout: float | None) -> AsyncIterator[None]:
    """End a block when its time is up.

    Raises:
        TaskTimeoutError: It was.
    """
    limit = asyncio.timeout(timeout)
    try:
        async with limit:
            yield
    except TimeoutError as err:
        if not limit.expired():
            raise
        raise TaskTimeoutError(f"it was not over after the {timeout} s that it had") from err


def _note(request: web.Request, error: VmpoolError) -> None:
    """Have the log and the metrics show an error that the status does not."""
    request[edge.CODE] = error.error_code
    if error.fault is Fault.INFRASTRUCTURE:
        log.warning("request=%s %s: %s", request[edge.REQUEST_ID], error.error_code, error)


def _check_version(request: web.Request) -> None:
    version = request.headers.get("Connect-Protocol-Version", VERSION)
    if version != VERSION:
        raise InvalidRequestError(f"connect-protocol-version {version[:32]!r} is not {VERSION!r}")


def _check_stream(request: web.Request) -> None:
    _check_version(request)
    if request.content_type != STREAM:
        raise InvalidRequestError(
            f"content type {request.content_type[:200]!r} is not {STREAM!r}",
            code="unsupported_media_type",
        )
    for name in ("Content-Encoding", "Connect-Content-Encoding"):
        encoding = request.headers.get(name, "identity")
        if encoding.lower() != "identity":
            raise InvalidRequestError(
                f"{name.lower()} {encoding[:32]!r} is not 'identity'", code="unsupported_media_type"
            )


def _interval_of(request: web.Request) -> float:
    said = request.headers.get("Keepalive-Ping-Interval", "")
    return float(said) if _INTERVAL.fullmatch(said) else KEEPALIVE_SECONDS
