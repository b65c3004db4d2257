"""Spare: a clone as its pool sees it, and the bounds within which one is made and ended.

Backstops: who makes and kills clones has deadlines of their own. What becomes of a clone that keeps
to no bound, the pool decides.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol, TypeVar

from vmpool.descriptors import spent
from vmpool.errors import GuestError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class PoolClone(Protocol):
    """What a pool asks of a clone."""

    async def activate(self) -> None:
        """Wake the clone for its holder; return when it runs.

        Raises:
            VmpoolError: It cannot be used, or has died; the pool kills it.
        """

    async def kill(self) -> None:
        """End the clone and all it holds; return when that is gone. *Idempotent.*"""

    async def wait_dead(self) -> None:
        """Return the moment the clone dies, whatever the cause."""


C = TypeVar("C", bound=PoolClone)


async def restored(restore: Callable[[], Awaitable[C]], *, within: float) -> C:
    """Return what `restore` makes; cancel it after `within` seconds.

    Raises:
        GuestError: `restore_timeout`.
        HostError: `descriptors_spent`.
    """
    limit = asyncio.timeout(within)
    try:
        async with limit:
            return await restore()
    except TimeoutError as error:
        if not limit.expired():
            raise
        message = f"a restore took longer than {within} s"
        raise GuestError(message, code="restore_timeout") from error
    except OSError as error:
        if (known := spent(error)) is not None:
            raise known from error
        raise


async def killed(clone: PoolClone, *, within: float) -> None:
    """Kill a clone, or stop waiting for its end when cancelled.

    Raises:
        TimeoutError: It did not end within `within` seconds, and the kill was given up.
        Exception: Whatever the kill failed with; the machine may still be there.
    """
    kill = asyncio.ensure_future(clone.kill())
    try:
        async with asyncio.timeout(within):
            await asyncio.shield(kill)  # a kill goes on when cancelled; we do not
    except Exception:
        kill.cancel()
        raise
