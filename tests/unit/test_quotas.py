"""Quotas over a real host: exact among many at once, and right again after whatever went wrong."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.api.conftest import IMAGE
from tests.fake_host import add_template, opened, run_request, until, wanted
from tests.fakes import FakeEngine
from vmpool.config import TenantSettings
from vmpool.errors import CapacityError, QuotaError
from vmpool.host import ForkRequest
from vmpool.lifecycle import OnStop
from vmpool.metrics import Metrics
from vmpool.model import Command
from vmpool.policy import Limits
from vmpool.quota import Quota, Usage
from vmpool.quotas import Quotas
from vmpool.sandbox import Sandbox

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from pathlib import Path

    from vmpool.clone import Clone
    from vmpool.host import Host
    from vmpool.pool import Pool

ROOM = Limits(ready=0, total=16)
MEMORY = 256 << 20


async def no_overrides() -> dict[str, dict[str, int | None]]:
    return {}


async def quota_of_local(host: Host, **quota: int | None) -> None:
    await host.store.tenants.change("local", name=None, quota=dict(quota))
    host.quotas._asked_at = float("-inf")  # as two seconds later


def used(host: Host, owner: str = "t") -> Usage:
    return host.quotas.used(owner)


async def test_of_many_who_ask_at_once_as_many_are_served_as_may_be(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine, tenants=TenantSettings(sandboxes=3)) as host:
        await add_template(host, limits=ROOM)
        asked: list[Awaitable[object]] = [host.create(wanted(), owner="t") for _ in range(6)]
        asked += [host.run(run_request(Command(argv=("true",))), owner="t") for _ in range(2)]
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        refused = [each for each in outcomes if isinstance(each, QuotaError)]
        assert len(refused) == 5
        assert {(each.resource, each.used, each.limit) for each in refused} == {("sandboxes", 3, 3)}
        assert used(host) == Usage(sandboxes=3, vcpus=3, memory_bytes=3 * MEMORY)
        assert used(host, "another") == Usage()
        for sandbox in host.sandboxes(owner="t"):
            await host.kill(sandbox.id, owner="t")
        assert used(host) == Usage()


async def test_a_tenant_that_asks_by_the_dozen_keeps_no_other_waiting(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine) as host:
        await add_template(host, limits=Limits(ready=0, total=1, queue=20))
        held = await host.create(wanted(), owner="greedy")
        served: list[str] = []

        async def ask(owner: str) -> None:
            sandbox = await host.create(wanted(), owner=owner)
            served.append(owner)
            await host.kill(sandbox.id, owner=owner)

        pool = host.catalogue.pool(IMAGE)
        async with asyncio.TaskGroup() as group:
            for count, owner in enumerate(["greedy"] * 4 + ["modest"], 1):
                group.create_task(ask(owner))
                await until(partial(_wait, count, pool))
            await host.kill(held.id, owner="greedy")
        assert "modest" in served[:2]


def _wait(count: int, pool: Pool[Clone]) -> bool:
    return pool.census.waiting == count


async def test_what_comes_to_nothing_is_given_back(state: Path, engine: FakeEngine) -> None:
    async with opened(state, engine, tenants=TenantSettings(sandboxes=1)) as host:
        await add_template(host, limits=Limits(ready=0, total=1))
        mine = await host.create(wanted(), owner="another")
        waiting = asyncio.create_task(host.create(wanted(), owner="t"))
        await until(lambda: used(host).sandboxes)
        with pytest.raises(QuotaError):
            await host.create(wanted(), owner="t")
        waiting.cancel()
        await asyncio.wait({waiting})
        assert used(host) == Usage()
        with pytest.raises(CapacityError):
            await host.create(wanted(wait=0.01), owner="t")
        assert used(host) == Usage()
        await host.kill(mine.id, owner="another")


async def test_children_count_before_there_are_any_and_are_all_refused_together(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine, tenants=TenantSettings(sandboxes=4)) as host:
        await add_template(host, limits=ROOM)
        parent = await host.create(wanted(), owner="t")
        with pytest.raises(QuotaError) as refused:
            await host.fork(parent.id, ForkRequest(count=4, timeout=60), owner="t")
        assert (refused.value.used, refused.value.limit) == (1, 4)
        assert used(host).sandboxes == 1
        born = await host.fork(parent.id, ForkRequest(count=3, timeout=60), owner="t")
        assert all(isinstance(child, Sandbox) for child in born)
        assert used(host) == Usage(sandboxes=4, vcpus=4, memory_bytes=4 * MEMORY)


async def test_a_paused_sandbox_counts_as_paused_and_must_find_room_to_come_back(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine, tenants=TenantSettings(sandboxes=1, paused=1)) as host:
        await add_template(host, limits=ROOM)
        first = await host.create(wanted(), owner="t")
        await host.pause(first.id, owner="t")
        assert (used(host).sandboxes, used(host).paused) == (0, 1)
        assert used(host).disk_bytes == sum(host._vault.tally.values()) > 0
        second = await host.create(wanted(), owner="t")
        with pytest.raises(QuotaError) as refused:
            await host.resume(first.id, owner="t", timeout=None)
        assert refused.value.resource == "sandboxes"
        with pytest.raises(QuotaError) as refused:
            await host.pause(second.id, owner="t")
        assert refused.value.resource == "paused"
        await host.kill(second.id, owner="t")
        await host.resume(first.id, owner="t", timeout=None)
        assert used(host) == Usage(sandboxes=1, vcpus=1, memory_bytes=MEMORY)


async def test_disk_is_kept_free_for_all_that_a_machine_could_have(
    state: Path, engine: FakeEngine
) -> None:
    settings = TenantSettings(disk_bytes=MEMORY)
    async with opened(state, engine, tenants=settings) as host:
        await add_template(host, limits=ROOM)
        made = await host.create(wanted(), owner="t")
        with pytest.raises(QuotaError) as refused:
            await host.checkpoint(made.id, owner="t", name=None)
        assert refused.value.resource == "disk_bytes"


async def test_the_next_server_counts_what_it_takes_over(state: Path, engine: FakeEngine) -> None:
    settings = TenantSettings(sandboxes=2)
    async with opened(state, engine, tenants=settings, on_stop=OnStop.KEEP) as host:
        await add_template(host, limits=ROOM)
        made = await host.create(wanted(), owner="t")
        asleep = await host.create(wanted(), owner="t")
        await host.pause(asleep.id, owner="t")
        before = used(host)
    async with opened(state, engine, tenants=settings) as host:
        assert used(host) == before
        await host.create(wanted(), owner="t")
        with pytest.raises(QuotaError):
            await host.resume(asleep.id, owner="t", timeout=None)
        await host.kill(made.id, owner="t")


async def test_an_operator_limits_or_frees_one_tenant_while_the_server_runs(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine, tenants=TenantSettings(sandboxes=0)) as host:
        await add_template(host, limits=ROOM)
        await host.create(wanted(), owner="local")
        await quota_of_local(host, sandboxes=1)
        with pytest.raises(QuotaError):
            await host.create(wanted(), owner="local")
        await quota_of_local(host, sandboxes=None)
        await host.create(wanted(), owner="local")


def test_what_is_on_its_way_is_counted_until_each_of_it_is_given_back() -> None:
    quotas = Quotas(Quota(sandboxes=3), no_overrides, Metrics())
    nothing, one = Usage(), Usage(sandboxes=1)
    taken = [quotas.take("t", demand) for demand in (nothing, one, nothing, one, one)]
    with pytest.raises(QuotaError):
        quotas.take("t", one)
    for left, reservation in zip((3, 2, 2, 1, 0), taken, strict=True):
        reservation.give_back()
        reservation.give_back()
        assert quotas.used("t") == Usage(sandboxes=left)
    assert not quotas._coming


async def test_who_asks_too_often_is_told_when_to_come_back() -> None:
    now = 0.0
    quotas = Quotas(Quota(creates_per_minute=2), no_overrides, Metrics(), now=lambda: now)
    quotas.pace("t")
    quotas.pace("t")
    quotas.pace("another", 2)
    with pytest.raises(QuotaError) as refused:
        quotas.pace("t")
    assert refused.value.retry_after == 30.0
    assert quotas.recent_creates("t") == 2
    now = 30.0
    assert quotas.recent_creates("t") == 1
    quotas.pace("t")
    with pytest.raises(QuotaError) as refused:
        quotas.pace("t", 3)
    assert refused.value.retry_after == float("inf")


async def test_a_refused_request_uses_up_no_create(state: Path, engine: FakeEngine) -> None:
    settings = TenantSettings(sandboxes=1, creates_per_minute=2)
    async with opened(state, engine, tenants=settings) as host:
        await add_template(host, limits=ROOM)
        await host.create(wanted(), owner="t")
        for _ in range(3):
            with pytest.raises(QuotaError) as refused:
                await host.create(wanted(), owner="t")
            assert refused.value.resource == "sandboxes"
        assert host.quotas.recent_creates("t") == 1
