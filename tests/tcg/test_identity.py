"""Clones of one snapshot are as different as machines that were never one."""

from __future__ import annotations

import asyncio
import collections
import json
import time
from typing import Any

import pytest

from tests.serving import Api

pytestmark = [pytest.mark.tcg, pytest.mark.shares_host, pytest.mark.timeout(900)]

CLONES = 50
AT_ONCE = 2

PROBE = """
import json, os, platform, random, secrets, ssl, uuid, time
import numpy
print(json.dumps({
    "urandom": os.urandom(16).hex(),
    "getrandom": os.getrandom(16).hex(),
    "secrets": secrets.token_hex(16),
    "random": random.getrandbits(128),
    "numpy": numpy.random.bytes(16).hex(),
    "openssl": ssl.RAND_bytes(16).hex(),
    "uuid1": str(uuid.uuid1()),
    "uuid4": str(uuid.uuid4()),
    "hash": hash("vmpool"),
    "tempname": next(__import__("tempfile")._get_candidate_names()),
    "boot_id": open("/proc/sys/kernel/random/boot_id").read().strip(),
    "kernel uuid": open("/proc/sys/kernel/random/uuid").read().strip(),
    "machine_id": open("/etc/machine-id").read().strip(),
    "hostname": os.uname().nodename,
    "platform": platform.node(),
    "clock": time.time(),
}))
"""

SAME = {"hash", "clock"}
"""`hash` is fixed for the life of an interpreter, which was one before the snapshot."""


async def test_fifty_clones_share_no_random_source_and_no_name(api: Api) -> None:
    seen: dict[str, list[Any]] = collections.defaultdict(list)
    turn = asyncio.Semaphore(AT_ONCE)

    async def probe() -> None:
        async with turn:
            before = time.time()
            answer = await api.run(code=PROBE, wait=200, timeout=60)
            after = time.time()
        found = json.loads(answer["stdout"])
        assert before - 1 < found["clock"] < after + 1
        assert answer["identity"]["hostname"] == found["hostname"]
        assert answer["identity"]["machine_id"] == found["machine_id"]
        assert answer["identity"]["boot_id"] == found["boot_id"]
        assert {"random", "numpy.random"} <= set(answer["identity"]["generators"])
        for source, value in found.items():
            seen[source].append(value)

    async with asyncio.TaskGroup() as group:
        for _ in range(CLONES):
            group.create_task(probe())
    for source, values in seen.items():
        if source not in SAME:
            assert len(set(values)) == CLONES, f"{source} repeats between clones"


async def test_two_runs_in_one_sandbox_draw_different_numbers(api: Api) -> None:
    code = "import random, numpy; print(random.random(), numpy.random.rand())"
    async with api.sandbox() as sandbox:
        first = await api.execute(sandbox, code=code)
        second = await api.execute(sandbox, code=code)
    assert set(first["stdout"].split()).isdisjoint(second["stdout"].split())
