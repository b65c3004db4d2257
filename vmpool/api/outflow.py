"""Outflow: sending to a client that may be slow, but not for ever.

A client that takes nothing for the limit's seconds is given up, so that it cannot keep a guest's
output, and with it an execution, in suspense.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from vmpool.errors import CallerError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from aiohttp import web

    from vmpool.api.limits import Limits


class StalledError(CallerError):
    """The client takes nothing any more; there is no use in telling it."""


async def send(sending: Awaitable[None], limits: Limits) -> None:
    """Await a write, for as long as a client may stall.

    Raises:
        StalledError: It took nothing for too long.
    """
    try:
        async with asyncio.timeout(limits.published.stall_seconds):
            await sending
    except TimeoutError as err:
        raise StalledError(
            f"the client took nothing for {limits.published.stall_seconds} s", code="client_stalled"
        ) from err


async def deliver(response: web.StreamResponse, request: web.Request, limits: Limits) -> None:
    """Send a whole answer, where it has a deadline; aiohttp would wait for its reader for ever.

    One that was sent while it was made is left as it is.

    Raises:
        StalledError: The client took nothing for too long; the answer has begun.
    """
    if not response.prepared:
        await send(_send_whole(response, request), limits)


async def _send_whole(response: web.StreamResponse, request: web.Request) -> None:
    await response.prepare(request)
    await response.write_eof()
