"""A hundred sandboxes at once from one process of E2B's users.

Over guests that are local processes: a hundred emulated machines are more than a test's machine
bears, and what is tried is the server between the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import pytest

from tests.api.conftest import IMAGE, place_image, served
from tests.e2b.sdks import NEWEST, RUN_SECONDS
from tests.fake_stem import Stem
from tests.fakes import FakeEngine
from tests.serving import until
from vmpool.catalogue import TemplateRequest
from vmpool.config import DeadlineSettings, RequestSettings, Settings, TenantSettings
from vmpool.host import Host, HostFacts
from vmpool.model import Accelerator, Transport
from vmpool.opening import Base, open_host
from vmpool.policy import Limits

pytestmark = [pytest.mark.tcg, pytest.mark.timeout(900)]

CROWD = 100


async def test_one_process_has_a_hundred_sandboxes_at_once(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    tmp_path = tmp_path_factory.mktemp("crowd")  # short: paths of sockets are
    settings = Settings(
        state=tmp_path,
        run=tmp_path / "run",
        tenants=TenantSettings(sandboxes=CROWD, creates_per_minute="unlimited"),
        requests=RequestSettings(queue_wait=300.0, queue_wait_most=300.0),
        deadlines=DeadlineSettings(hello=120.0, identify=120.0, warm=120.0, activate=120.0),
    )
    place_image(tmp_path)
    with contextlib.closing(Stem()) as stem:
        async with _host(settings, stem) as host, served(host, tokens=True) as server:
            url = server.url
            pointed = {"E2B_API_URL": url, "E2B_SANDBOX_URL": url, "E2B_API_KEY": server.token}
            assert await _crowd(pointed) == f"{CROWD} True\n"
            assert host.sandboxes(owner=server.owner) == []


@contextlib.asynccontextmanager
async def _host(settings: Settings, stem: Stem) -> AsyncIterator[Host]:
    """Yield a host that has a clone ready for everyone."""
    engine = FakeEngine(stem=stem)
    facts = HostFacts(
        accelerator=Accelerator.TCG,
        accelerator_reason="",
        transport=Transport.SERIAL,
        qemu_version=engine.version,
    )
    base = Base(engine=engine, facts=facts)
    async with open_host(settings, progress=lambda _: None, base=base) as host:
        limits = Limits(ready=CROWD, total=CROWD)
        request = TemplateRequest(name=IMAGE, image=IMAGE, limits=limits)
        await host.catalogue.add(request, progress=lambda _: None)

        async def is_filled() -> bool:
            return host.catalogue.status(IMAGE).census.ready == CROWD

        await until(is_filled, timeout=400)
        yield host


async def _crowd(pointed: dict[str, str]) -> str:
    argv = [*await asyncio.to_thread(NEWEST.program, "crowd"), str(CROWD)]
    process = await asyncio.create_subprocess_exec(
        *argv,
        env={**os.environ, **pointed},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(RUN_SECONDS):
        said, complaints = await process.communicate()
    assert process.returncode == 0, complaints.decode()
    return said.decode()
