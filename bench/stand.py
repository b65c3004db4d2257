"""Stand: the product opened for measuring.

The host, the server and the client are the real ones, in this process, on a state directory that
no server uses at the time. The stand leaves that directory as it found it: its templates are its
own, named so that nobody's are touched, and are removed in the end.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp

from vmpool.address import Address
from vmpool.catalogue import TemplateState
from vmpool.cli.listening import bound
from vmpool.cli.running import served
from vmpool.client.endpoint import Endpoint
from vmpool.clone import RestoreDeadlines
from vmpool.engine import Engine
from vmpool.host import Host
from vmpool.opening import find_base, open_host
from vmpool.policy import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from vmpool.config import Settings

PREFIX = "vmpool-bench-"
"""What the names of the stand's own templates begin with."""

LOOPBACK = Address(host="127.0.0.1", port=0)

EMPTY = Limits(ready=0)
"""A pool that restores nothing by itself; also what a killed benchmark leaves in the journal."""

ANSWER_TIMEOUT = 30.0
"""Seconds that a request may take, all in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """The product, opened.

    Attributes:
        engine: The same that the host restores with.
        endpoint: Where the server is, and a token.
        client: Its base URL and its token are the server's.
    """

    host: Host
    engine: Engine
    endpoint: Endpoint
    client: aiohttp.ClientSession

    @property
    def clones(self) -> Path:
        """Directory that clones' directories are made in."""
        return self.host.settings.run / "clones"

    @property
    def deadlines(self) -> RestoreDeadlines:
        """When a restore is given up: as the host does."""
        given = self.host.settings.deadlines
        return RestoreDeadlines(
            hello=given.hello, identify=given.identify, warm=given.warm, activate=given.activate
        )


@contextlib.asynccontextmanager
async def open_stand(
    settings: Settings, *, progress: Callable[[str], None]
) -> AsyncIterator[Stand]:
    """Open host, server and client on `settings.state`; leaving the block kills what they started.

    Raises:
        ConflictError: `state_in_use`: a server runs on this state directory.
        VmpoolError: As `open_host`.
    """
    base = await find_base(progress)
    async with contextlib.AsyncExitStack() as opened:
        host = await opened.enter_async_context(open_host(settings, progress=progress, base=base))
        await _quieten(host, progress)
        listener = opened.enter_context(bound(LOOPBACK))
        endpoint = await opened.enter_async_context(served(host, listener))
        session = aiohttp.ClientSession(
            endpoint.url,
            headers={"Authorization": f"Bearer {endpoint.token}"} if endpoint.token else {},
            timeout=aiohttp.ClientTimeout(total=ANSWER_TIMEOUT),
        )
        client = await opened.enter_async_context(session)
        yield Stand(host=host, engine=base.engine, endpoint=endpoint, client=client)


async def _quieten(host: Host, progress: Callable[[str], None]) -> None:
    """Empty the pools of the templates that were here before; the journal keeps their limits."""
    for status in host.catalogue.statuses:
        progress(f"emptying the pool of template {status.name}")
        known = await host.catalogue.settled(status.name)
        if status.name.startswith(PREFIX):  # a benchmark was killed
            await host.catalogue.remove(status.name)
        elif known.state is TemplateState.READY:
            pool = host.catalogue.pool(status.name)
            pool.resize(pool.limits.without_spares())
