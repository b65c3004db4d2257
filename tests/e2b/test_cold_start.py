"""A real guest's files outlive its kernel, through E2B's SDK."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from tests.e2b.conftest import TEMPLATE, Programs
from tests.serving import START_SECONDS, Server, client

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host, pytest.mark.timeout(1800)]

PATIENT = aiohttp.ClientTimeout(total=START_SECONDS)
DISKED = {"name": "disked", "image": TEMPLATE, "disk_bytes": 1 << 30, "limits": {"ready": 0}}


async def test_sandboxes_boot_with_the_files_that_were_kept_alone(
    e2b_server: Server, programs: Programs
) -> None:
    async with client(e2b_server) as api:
        status, made = await api.call("POST", "/v1/templates", json=DISKED, timeout=PATIENT)
        assert status == 201, made
        try:
            said = await asyncio.to_thread(programs.run, "cold_start")
        finally:
            await api.call("DELETE", "/v1/templates/disked")
    assert said.splitlines() == [
        *("runs on", "paused", "gone", "file", "boot", "processes", "command", "forgotten"),
        *("paused with memory", "memory", "files", "kill"),
    ]
