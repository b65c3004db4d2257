"""Asking: one question to the guest and its answer, and how long a guest may take to give it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from vmpool.agent import answers
from vmpool.errors import GuestError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from vmpool.agent.link import Link

PATIENCE = 60.0
"""Seconds without any progress after which a guest counts as hung."""


async def ask(
    link: Link, request: dict[str, Any], *, timeout: float | None = None
) -> dict[str, Any]:
    """Return the one message that answers a request.

    Raises:
        VmpoolError: As `answers.done`; `guest_unresponsive` when none came in time.
    """
    async with link.open() as channel, patience(timeout):
        await channel.send_message(request)
        return answers.done(answers.expect(await channel.receive()))


@contextlib.asynccontextmanager
async def patience(timeout: float | None = None) -> AsyncGenerator[None, None]:
    """Turn a guest that does not answer within `timeout` seconds, or `PATIENCE`, into an error.

    Raises:
        GuestError: `guest_unresponsive`.
    """
    limit = PATIENCE if timeout is None else timeout
    try:
        async with asyncio.timeout(limit):
            yield
    except TimeoutError as err:
        raise GuestError(f"guest gave no answer in {limit} s", code="guest_unresponsive") from err
