"""What a guest reaches over its network, and what it does not, on a real machine.

The server lives in a namespace that the test makes, and so does the internet.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests import internet as nets
from tests.internet import Internet
from tests.serving import Api, Ground, Server, opened_ground

pytestmark = [
    pytest.mark.tcg,
    pytest.mark.shares_host,
    pytest.mark.skipif(os.geteuid() != 0, reason="networks are root's to make"),
    pytest.mark.asyncio(loop_scope="module"),
]

TRY = """
import socket, sys
kind, address, port, text = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4].encode()
one = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
one.settimeout(3)
try:
    one.connect((address, port))
    one.send(text)
    print("answer", one.recv(4096).decode())
except OSError as err:
    print(type(err).__name__, err)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def internet() -> AsyncIterator[Internet]:
    async with nets.opened() as opened:
        yield opened


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with opened_ground("images", "snapshots") as opened:
        (opened.state / "vmpool.toml").write_text(f'[network]\ndns = ["{nets.WORLD}"]\n')
        yield opened


def start(ground: Ground, internet: Internet) -> Server:
    vmpool = os.fspath(Path(sys.executable).with_name("vmpool"))
    return Server(
        ground,
        "base",
        *("up", "--template", "base", "--ready", "2"),
        environment={"VMPOOL_CONFIG": os.fspath(ground.state / "vmpool.toml")},
        program=(*internet.program(), vmpool),
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(ground: Ground, internet: Internet) -> AsyncIterator[Server]:
    running = start(ground, internet)
    try:
        await asyncio.to_thread(running.__enter__)
        yield running
    finally:
        await asyncio.to_thread(running.stop)


@pytest_asyncio.fixture(loop_scope="module")
async def api(server: Server, internet: Internet) -> AsyncIterator[Api]:
    async with internet.client(server) as connected:
        yield connected


async def attempt(
    api: Api, sandbox: str, address: str, text: str, *, kind: str = "tcp", port: int = nets.PORT
) -> str:
    """Have the guest send a text; return what came of it."""
    argv = ["python3", "-c", TRY, kind, address, str(port), text]
    done = await api.execute(sandbox, argv=argv, timeout=60)
    return str(done["stdout"]).strip() or str(done)


def restricted(**more: Any) -> dict[str, Any]:
    allow = [{"cidr": f"{nets.ALLOWED}/32", "protocol": "tcp", "ports": [nets.PORT]}]
    return {"mode": "restricted", "allow": allow, **more}


async def test_what_is_allowed_is_reached_from_the_hosts_address(
    api: Api, internet: Internet
) -> None:
    async with api.sandbox(network=restricted()) as sandbox:
        assert await attempt(api, sandbox, nets.ALLOWED, "hi") == f"answer {nets.HOME} hi"
