"""A real server as a newcomer starts it, over a real image, under whatever this host can run.

Images and snapshots are named by what they are made of, so they are kept between test runs in
`$XDG_CACHE_HOME/vmpool/tests`; everything else is new each time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.serving import Api, Ground, Server, client, opened_ground

TEMPLATE = "python"


class UpServer(Server):
    """`vmpool up`."""

    def __init__(self, ground: Ground, *options: str) -> None:
        super().__init__(ground, TEMPLATE, "up", "--template", TEMPLATE, *options)


@pytest.fixture(scope="session")
def ground() -> Iterator[Ground]:
    """A state directory of this run, with the images and snapshots of earlier ones."""
    with opened_ground("images", "snapshots") as opened:
        yield opened


@pytest.fixture(scope="session")
def server(ground: Ground) -> Iterator[UpServer]:
    """A server that all tests of the ring share; those that kill one start their own."""
    with UpServer(ground, "--ready", "2") as running:
        yield running


@pytest_asyncio.fixture
async def api(server: UpServer) -> AsyncIterator[Api]:
    """A client of the shared server."""
    async with client(server) as connected:
        yield connected
