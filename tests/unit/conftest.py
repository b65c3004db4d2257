"""Hosts over a fake engine, for the modules between the engine and the edges; and fake guests."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests import fake_guest, fake_host
from tests.api.conftest import IMAGE
from tests.fakes import FakeEngine
from vmpool import snapshot, template
from vmpool.image import Library
from vmpool.policy import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from vmpool.host import Host
    from vmpool.snapshot import Snapshot


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a guest that all tests of a module share."""
    with fake_guest.running(tmp_path_factory.mktemp("guest")) as path:
        yield path


@pytest.fixture
def engine() -> FakeEngine:
    """An engine whose faults a test may set."""
    return FakeEngine()


@pytest.fixture
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory with an image, and with its snapshot once a test has had one made."""
    directory = tmp_path_factory.mktemp("host")
    fake_host.furnish(directory, tmp_path_factory.getbasetemp() / "furnished")
    return directory


@pytest.fixture
async def host(
    state: Path, engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Host]:
    """A host with one template, which restores a clone whenever somebody asks."""
    async with fake_host.opened(state, engine) as opened:
        await fake_host.add_template(opened)
        fake_host.keep(state, tmp_path_factory.getbasetemp() / "furnished")
        yield opened


@pytest.fixture
async def roomy(
    state: Path, engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Host]:
    """A host whose pool has room for a family and keeps no spares."""
    async with fake_host.opened(state, engine) as host:
        await fake_host.add_template(host, limits=Limits(ready=0, total=8))
        fake_host.keep(state, tmp_path_factory.getbasetemp() / "furnished")
        yield host


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Snapshot:
    """The snapshot of a template that all tests of a module restore clones of."""
    state = tmp_path_factory.mktemp("clone")
    fake_host.furnish(state, tmp_path_factory.getbasetemp() / "furnished")
    for name in ("clones", "snapshots"):
        (state / name).mkdir(exist_ok=True)
    engine = FakeEngine()
    image = Library(state).load(IMAGE)
    spec = fake_host.spec_of(state, engine, image.digest)
    directory = state / "snapshots" / template.snapshot_id(image.digest, spec)
    if directory.exists():
        return snapshot.load(directory)
    return asyncio.run(
        template.make(
            engine,
            image,
            spec,
            snapshots=state / "snapshots",
            run=state / "clones",
            boot_timeout=60.0,
            progress=lambda _: None,
        )
    )
