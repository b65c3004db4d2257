"""A hundred sandboxes at once from one process of E2B's users.

Over guests that are local processes: a hundred emulated machines are more than a test's machine
bears, and what is tried is the server between the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import os

import pytest

from tests.api.conftest import IMAGE, served
from tests.e2b.local_host import local_host
from tests.e2b.sdks import NEWEST, RUN_SECONDS
from tests.fake_stem import Stem
from tests.fakes import FakeEngine
from tests.serving import until
from vmpool.config import DeadlineSettings, RequestSettings, Settings, TenantSettings
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
    with contextlib.closing(Stem()) as stem:
        limits = Limits(ready=CROWD, total=CROWD)
        async with (
            local_host(settings, engine=FakeEngine(stem=stem), limits=limits) as host,
            served(host, tokens=True) as server,
        ):

            async def is_filled() -> bool:
                return host.catalogue.status(IMAGE).census.ready == CROWD

            await until(is_filled, timeout=400)
            url = server.url
            pointed = {"E2B_API_URL": url, "E2B_SANDBOX_URL": url, "E2B_API_KEY": server.token}
            assert await _crowd(pointed) == f"{CROWD} True\n"
            assert host.sandboxes(owner=server.owner) == []


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
    assert process.returncode == 0, (said, complaints.decode())
    return said.decode()
