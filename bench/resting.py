"""Resting: the stand's pool brought to a state, and waited for, before something is timed."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.stand import EMPTY
from vmpool.errors import CapacityError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from vmpool.clone import Clone
    from vmpool.policy import Limits
    from vmpool.pool import Pool

SETTLE_TIMEOUT = 60.0
LOOK_AGAIN = 0.002  # seconds; a restore takes a hundred times that


async def settle(pool: Pool[Clone], limits: Limits, *, timeout: float = SETTLE_TIMEOUT) -> None:
    """Give a pool limits, and return once it has all its ready clones and no other.

    Raises:
        CapacityError: They did not come in time.
    """
    pool.resize(replace(limits, clone_bytes=pool.limits.clone_bytes))
    await at_rest(pool, ready=limits.ready, timeout=timeout)


async def at_rest(
    pool: Pool[Clone], *, ready: int, held: int = 0, timeout: float = SETTLE_TIMEOUT
) -> None:
    """Return once `ready` clones are there, `held` are somebody's, and none comes or goes.

    Raises:
        CapacityError: They did not come in time.
    """
    try:
        async with asyncio.timeout(timeout):
            # A pool tells nobody of its census, and this wait is outside what is measured.
            while (census := pool.census).ready != ready or census.alive != ready + held:  # noqa: ASYNC110
                await asyncio.sleep(LOOK_AGAIN)
    except TimeoutError as err:
        raise CapacityError(f"pool {pool.name!r} did not come to rest") from pool.last_error or err


@contextlib.asynccontextmanager
async def emptied(pool: Pool[Clone]) -> AsyncIterator[None]:
    """Empty the pool when the block ends, and see that it is empty."""
    try:
        yield
    finally:
        await settle(pool, EMPTY)
