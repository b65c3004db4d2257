"""E2B's SDKs, unmodified, against a real server over real guests.

As the ring `tcg`: one server for all, and images that earlier runs made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2b.sdks import NEWEST, Sdk, run
from tests.serving import Ground, Server, opened_ground

TEMPLATE = os.environ.get("VMPOOL_TEST_E2B", "python")
"""What `base` and `code-interpreter-v1` mean; `python`, which other rings have made already."""


@pytest.fixture(scope="session")
def ground() -> Iterator[Ground]:
    """A state directory of this run, with the images and snapshots of earlier ones."""
    with opened_ground("images", "snapshots") as opened:
        yield opened


@pytest.fixture(scope="session")
def e2b_server(ground: Ground) -> Iterator[Server]:
    """A server that all tests of the ring share."""
    arguments = ("up", "--template", TEMPLATE, "--ready", "2")
    with Server(ground, TEMPLATE, *arguments) as running:
        yield running


@pytest.fixture(scope="session")
def pointed(e2b_server: Server) -> dict[str, str]:
    """What a program finds in its environment: all that E2B's users change."""
    return {
        "E2B_API_KEY": e2b_server.ground.token,
        "E2B_API_URL": e2b_server.url,
        "E2B_SANDBOX_URL": e2b_server.url,
    }


class Programs:
    """Programs of E2B's users, of the directory `programs`."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    def run(self, name: str, *arguments: str, sdk: Sdk = NEWEST) -> str:
        """Run one to its end and return what it wrote."""
        return run(sdk.program(name), self.environment, *arguments)


@pytest.fixture
def programs(pointed: dict[str, str]) -> Programs:
    """The programs, pointed at the shared server."""
    return Programs(pointed)
