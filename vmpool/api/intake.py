"""Intake: request bodies, under a limit of bytes and of time.

Nothing is buffered before its length is known to be allowed, and a client that sends a byte a
minute is given up.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing
from typing import TYPE_CHECKING

from aiohttp import web

from vmpool.api import compression
from vmpool.errors import CallerError, InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from vmpool.api.budget import Loan
    from vmpool.api.limits import Limits

CHUNK_BYTES = 1 << 16

LEAST_BYTES_A_SECOND = 4096
"""How slowly a file may come, counting only the time in which we wait for it."""


async def continue_later(request: web.Request) -> None:
    """Answer `Expect: 100-continue` once the body is wanted, and not before."""


async def go_on(request: web.Request) -> None:
    """Have a client send its body that waits to be told to."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # the response proper has not begun


async def read_json(request: web.Request, limits: Limits, loan: Loan) -> bytes:
    """Return the whole body of a JSON request.

    Raises:
        InvalidRequestError: `unsupported_media_type`, or `invalid_body` when its framing is broken.
        TooLargeError: `body_too_large`.
        CallerError: `body_timeout` when it took too long to come.
        CapacityError: `bodies_busy`; all bodies together are too large.
    """
    if request.content_type != "application/json":
        raise InvalidRequestError(
            f"content type {request.content_type[:200]!r} is not 'application/json'",
            code="unsupported_media_type",
            remedy="send the header 'Content-Type: application/json'",
        )
    limits.check_body_size(request.content_length or 0)
    loan.grow_to(request.content_length or 0)
    packed = compression.is_packed(request)
    await go_on(request)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.published.body_seconds):
            received = request.content.iter_chunked(CHUNK_BYTES)
            async for chunk in compression.unpacked(received) if packed else received:
                body += chunk
                limits.check_body_size(len(body))
                loan.grow_to(len(body))
    except TimeoutError as err:
        raise too_slow(limits) from err
    except web.RequestPayloadError as err:
        raise broken(err) from err
    return bytes(body)


async def read_file(request: web.Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Yield the body in chunks, unpacked, as they come and no faster than they are taken.

    Raises:
        InvalidRequestError: As `read_content`.
        TooLargeError: `file_too_large`.
        CallerError: As `read_content`.
    """
    size_bytes = 0
    async with aclosing(read_content(request, limits)) as chunks:
        async for chunk in chunks:
            size_bytes += len(chunk)
            limits.check_file_size(size_bytes)
            yield chunk


async def read_content(request: web.Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Yield a body of any size in chunks, unpacked; its reader limits what may come.

    Raises:
        InvalidRequestError: `invalid_body` when its framing or packing is broken,
            `unsupported_media_type` when it is packed otherwise than with gzip.
        CallerError: `body_timeout` when the client stopped sending, or sends a trickle.
    """
    received = read_as_sent(request, limits)
    packed = compression.is_packed(request)
    async with (
        aclosing(received),
        aclosing(compression.unpacked(received) if packed else received) as chunks,
    ):
        async for chunk in chunks:
            yield chunk


async def read_as_sent(request: web.Request, limits: Limits) -> AsyncGenerator[bytes, None]:
    """Yield a body of any size in chunks, packed or not, as `read_content`."""
    await go_on(request)
    loop = asyncio.get_running_loop()
    received, waited = 0, 0.0
    for _ in itertools.count():
        patience = limits.published.body_seconds
        began = loop.time()
        try:
            async with asyncio.timeout(min(patience, _left(patience, received, waited))):
                chunk = await request.content.read(CHUNK_BYTES)
        except TimeoutError as err:
            raise too_slow(limits) from err
        except web.RequestPayloadError as err:
            raise broken(err) from err
        waited += loop.time() - began
        if not chunk:
            return
        received += len(chunk)
        yield chunk


def _left(patience: float, received: int, waited: float) -> float:
    """Return how long the client may still keep us waiting, for what it has sent so far."""
    return patience + received / LEAST_BYTES_A_SECOND - waited


def too_slow(limits: Limits) -> CallerError:
    """Return, as an error to raise, that a body did not come in time."""
    return CallerError(
        f"the request body did not come within {limits.published.body_seconds} s",
        code="body_timeout",
    )


def broken(err: Exception) -> InvalidRequestError:
    """Return, as an error to raise, that a body cannot be read."""
    return InvalidRequestError(f"the request body is broken: {err}", code="invalid_body")
