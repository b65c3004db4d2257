"""The kvm ring: runs where the machine has what it is about, and says elsewhere what is missing.

One template serves it all, booted on KVM with its agent on vsock. Everything may be ten times
slower than usual, in a host that is emulated: deadlines are generous, restores are few.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kvm.capability import query_lacking
from tests.kvm.nested.image import build_guest
from tests.serving import Api, Ground, Server, client, opened_ground, until
from vmpool import clone, config, snapshot
from vmpool.catalogue import TemplateRequest
from vmpool.clone import Clone, RestoreDeadlines
from vmpool.engine.qemu import QemuEngine
from vmpool.model import AGENT_VSOCK_PORT
from vmpool.opening import open_host
from vmpool.policy import Limits
from vmpool.snapshot import Snapshot

TEMPLATE = "base"

SETTINGS = """\
insecure_no_tokens = true
[requests]
queue_wait = 240
[deadlines]
boot = 240
restore = 240
hello = 60
identify = 60
warm = 120
activate = 60
kill = 60
"""
DEADLINES = RestoreDeadlines(hello=60.0, identify=60.0, warm=120.0, activate=60.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the ring's tests where the machine cannot run them."""
    ring = [item for item in items if item.get_closest_marker("kvm") is not None]
    if ring and (lacking := asyncio.run(query_lacking())):
        for item in ring:
            item.add_marker(pytest.mark.skip(reason="; ".join(lacking)))


@dataclass(frozen=True)
class Stock:
    """A template's snapshot, and how clones of it are restored without a server."""

    engine: QemuEngine
    base: Snapshot
    run: Path

    @contextlib.asynccontextmanager
    async def clones(self, count: int = 1) -> AsyncIterator[list[Clone]]:
        """Yield so many clones, all alive at one time and awake; they are killed afterwards."""
        async with contextlib.AsyncExitStack() as undo:
            restored = []
            for _ in range(count):
                one = await clone.restore(self.engine, self.base, run=self.run, deadlines=DEADLINES)
                undo.push_async_callback(one.kill)
                restored.append(one)
            for one in restored:
                await one.activate()
            yield restored


@pytest.fixture(scope="session")
def ground() -> Iterator[Ground]:
    """A state directory with the template of the ring, whose snapshot no earlier run made."""
    with opened_ground("images") as opened:
        (opened.state / "vmpool.toml").write_text(SETTINGS)
        asyncio.run(_make_template(opened))
        yield opened


@pytest.fixture(scope="session")
def stock(ground: Ground) -> Stock:
    """What clones are restored of in the tests' own process."""
    run = ground.state / "clones"
    run.mkdir()
    (directory,) = (ground.state / "snapshots").iterdir()
    return Stock(asyncio.run(QemuEngine.detect()), snapshot.load(directory), run)


@pytest.fixture(scope="session")
def server(ground: Ground) -> Iterator[Server]:
    """A server that tests share; those that kill one start their own."""
    with serve(ground) as running:
        yield running


@pytest.fixture
async def api(server: Server) -> AsyncIterator[Api]:
    """A client of the shared server."""
    async with client(server) as connected:
        await settled(connected)
        yield connected


def serve(ground: Ground) -> Server:
    """Return a server on `ground`, which finds its template there."""
    settings = {"VMPOOL_CONFIG": os.fspath(ground.state / "vmpool.toml")}
    return Server(ground, TEMPLATE, "serve", environment=settings)


async def settled(api: Api) -> None:
    """Return once a server that serves already has its template, too."""

    async def ready() -> bool:
        status, template = await api.call("GET", f"/v1/templates/{TEMPLATE}")
        assert status == 200, template
        return bool(template["state"] == "ready")

    await until(ready, 240)


async def _make_template(ground: Ground) -> None:
    """Make the template, with a stranger's connection open when it is saved."""
    image = await build_guest(lambda _: None)
    environment = {"VMPOOL_STATE": os.fspath(ground.state)}
    settings = config.load(ground.state / "vmpool.toml", environ=environment)
    with contextlib.ExitStack() as held:
        async with open_host(settings, progress=print) as host:
            request = TemplateRequest(name=TEMPLATE, image=image.digest, limits=Limits(ready=1))
            await host.catalogue.add(request, progress=_connecting_before_the_save(ground, held))


def _connecting_before_the_save(
    ground: Ground, held: contextlib.ExitStack
) -> Callable[[str], None]:
    def progress(step: str) -> None:
        print(step, flush=True)
        if step.startswith("saving"):
            (machine,) = ground.clones
            cid = json.loads((machine / "machine.json").read_text())["cid"]
            stranger = held.enter_context(socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM))
            stranger.settimeout(60)
            stranger.connect((cid, AGENT_VSOCK_PORT))

    return progress
