"""Hypervisors wait for whatever state comes next, and go when nobody has use for them any more."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.fake_host import OWNER, add_template, opened, until, wanted
from tests.fakes import FakeEngine, FakeShell, Faults
from tests.scripted_clones import Clone, Maker, acquiring, end, soon
from tests.turns import answers
from tests.virtual_time import pass_time, settle, virtual
from vmpool.entry import STANDBY_BYTES, Entry
from vmpool.errors import EngineError
from vmpool.host import ForkRequest
from vmpool.model import Accelerator, Attachment, MachineSpec, Transport
from vmpool.policy import Limits
from vmpool.pool import Pool
from vmpool.sandbox import Sandbox
from vmpool.template_key import key_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from vmpool.clone import Waiting
    from vmpool.host import Host
    from vmpool.snapshot import Snapshot
    from vmpool.standby import Standby

ON_DEMAND = Limits(ready=0, standby=2, total=8)


def standby_of(host: Host) -> Standby:
    return host._nursery._standby


async def template_of(host: Host) -> Snapshot:
    """Return the snapshot of the one template there is."""
    (status,) = host.catalogue.statuses
    return (await host.catalogue.lineage(status.snapshot or "")).snapshot


def waiting(host: Host) -> list[Waiting]:
    return list(standby_of(host)._waiting.values())


async def stocked(host: Host, count: int = 2) -> list[Waiting]:
    """Return what waits, once so many do and nothing is on its way."""
    standby = standby_of(host)
    await until(lambda: standby.waiting == count == len(standby._keepers))
    return waiting(host)


async def test_who_asks_next_has_a_clone_of_what_waited_and_it_is_replaced(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine) as host:
        await add_template(host, limits=ON_DEMAND)
        spares = {each.id for each in await stocked(host)}
        made = [await host.create(wanted(), owner=OWNER) for _ in range(2)]
        assert {each.clone.id for each in made} == spares
        assert all(each.clone.timings.spawn_ns == 0 for each in made)
        for each in made:
            await answers(each)
        others = {each.id for each in await stocked(host)}
        assert others.isdisjoint(spares)
        assert standby_of(host).counters == {"waited": 2, "started": 0}
    assert not list((state / "run/clones").iterdir())


async def test_children_and_restores_take_what_waits_and_new_ones_beyond(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine) as host:
        await add_template(host, limits=ON_DEMAND)
        await stocked(host)
        parent = await host.create(wanted(), owner=OWNER)
        spares = {each.id for each in await stocked(host)}
        born = await host.fork(parent.id, ForkRequest(count=3, timeout=60.0), owner=OWNER)
        children = {each.clone.id for each in born if isinstance(each, Sandbox)}
        assert len(children) == 3
        assert spares < children
        assert standby_of(host).counters == {"waited": 3, "started": 1}


class Gated(FakeEngine):
    """An engine whose shells are made when a gate is open.

    Attributes:
        made: Called when one is, before whoever waits for it is woken.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = 0
        self.made: Callable[[], object] = lambda: None

    async def prepare(self, template: Snapshot, at: Attachment) -> FakeShell:
        self.begun += 1
        await self.gate.wait()
        shell = await super().prepare(template, at)
        asyncio.get_running_loop().call_soon(self.made)
        return shell


@asynccontextmanager
async def starting(state: Path) -> AsyncIterator[tuple[Gated, Standby, Snapshot]]:
    """Have one hypervisor that is being started to wait, until the gate opens."""
    engine = Gated()
    async with opened(state, engine) as host:
        await add_template(host, limits=Limits(ready=0, total=8))
        standby, template = standby_of(host), await template_of(host)
        engine.begun = 0
        engine.gate.clear()
        standby.keep(template, 1, party="test")
        await until(lambda: engine.begun == 1)
        try:
            yield engine, standby, template
        finally:
            engine.gate.set()
    assert not list((state / "run/clones").iterdir())


async def test_who_asks_while_one_starts_gets_that_one(state: Path) -> None:
    async with starting(state) as (engine, standby, template):
        first, second = (asyncio.create_task(standby.take(template)) for _ in range(2))
        await until(lambda: engine.begun == 2)  # the other one has nothing to wait for
        engine.gate.set()
        taken = [await first, await second]
        assert engine.begun == 2
        assert standby.counters == {"waited": 0, "started": 2}
        assert all(each.spawn_ns > 0 for each in taken)
        assert not standby.waiting
        standby.keep(template, 1, party="test")  # it is missed, and replaced
        await until(lambda: standby.waiting == 1)
        for each in taken:
            await each.kill()


async def test_who_leaves_while_one_starts_leaves_it_to_the_next(state: Path) -> None:
    async with starting(state) as (engine, standby, template):
        taking = asyncio.create_task(standby.take(template))
        await until(lambda: bool(standby._promised))
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        engine.gate.set()
        await until(lambda: standby.waiting == 1)
        await (await standby.take(template)).kill()
        assert engine.begun == 1


async def test_one_that_was_promised_to_who_left_ends_when_nobody_wants_it(state: Path) -> None:
    async with starting(state) as (engine, standby, template):
        taking = asyncio.create_task(standby.take(template))
        await until(lambda: bool(standby._promised))
        taking.cancel()
        dropping = asyncio.create_task(standby.drop(template.manifest.id, party="test"))
        await asyncio.wait({taking})
        assert not dropping.done()
        engine.gate.set()
        await dropping
        assert not standby._keepers


async def test_who_leaves_when_it_was_given_leaves_nothing(state: Path) -> None:
    async with starting(state) as (engine, standby, template):
        taking = asyncio.create_task(standby.take(template))
        await until(lambda: bool(standby._promised))
        engine.made = taking.cancel
        engine.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await taking
        assert not standby.waiting


async def test_who_was_promised_one_that_comes_to_nothing_has_another(state: Path) -> None:
    async with starting(state) as (engine, standby, template):
        taking = asyncio.create_task(standby.take(template))
        await until(lambda: bool(standby._promised))
        (keeper,) = standby._keepers
        keeper.cancel()
        await until(lambda: engine.begun == 2)
        engine.gate.set()
        await (await taking).kill()


async def test_one_that_ends_while_it_waits_is_missed_by_nobody(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine) as host:
        await add_template(host, limits=ON_DEMAND)
        for each in await stocked(host):
            os.kill(each.shell.pid, signal.SIGKILL)
        await until(lambda: not standby_of(host)._keepers)
        await answers(await host.create(wanted(), owner=OWNER))
        assert standby_of(host).counters == {"waited": 0, "started": 1}
        await stocked(host)


async def test_a_hypervisor_that_does_not_start_waits_for_nobody(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine) as host:
        engine.faults = Faults(prepare=EngineError("no, as the test wants it"))
        await add_template(host, limits=ON_DEMAND)
        await until(lambda: not standby_of(host)._keepers)
        engine.faults = Faults()
        await answers(await host.create(wanted(), owner=OWNER))
        await stocked(host)


async def test_nothing_waits_for_a_template_that_is_gone(state: Path, engine: FakeEngine) -> None:
    async with opened(state, engine) as host:
        await add_template(host, limits=ON_DEMAND)
        await stocked(host)
        await add_template(host, limits=Limits(ready=0, standby=1, total=2))
        await stocked(host, 1)
        made = await host.create(wanted(), owner=OWNER)
        await stocked(host, 1)
        (template,) = host.catalogue.statuses
        await host.catalogue.remove(template.name)
        assert not standby_of(host)._keepers
        await answers(made)  # its snapshot is kept for it
        assert [each.name for each in (state / "run/clones").iterdir()] == [made.clone.id]


async def test_two_who_want_some_have_both_and_each_gives_up_its_own(
    state: Path, engine: FakeEngine
) -> None:
    async with opened(state, engine) as host:
        await add_template(host)
        standby = standby_of(host)
        template = await template_of(host)
        standby.keep(template, 1, party="one")
        standby.keep(template, 2, party="another")
        await stocked(host, 3)
        standby.keep(template, 1, party="another")
        await stocked(host, 2)
        await standby.drop(template.manifest.id, party="one")
        assert len(standby._keepers) == 1
        await standby.drop(template.manifest.id, party="another")
        assert not standby._keepers


async def test_what_is_closed_keeps_none(state: Path, engine: FakeEngine) -> None:
    async with opened(state, engine) as host:
        await add_template(host)
        standby = standby_of(host)
        template = await template_of(host)
        standby.keep(template, 2, party="one")
        closing = asyncio.create_task(standby.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert not standby._keepers
        standby.keep(template, 2, party="one")
        assert not standby._keepers


@virtual
async def test_a_pool_has_them_started_when_nobody_waits_and_none_when_it_closes() -> None:
    told: list[tuple[int, int]] = []
    maker = Maker()
    maker.seconds = 1.0
    limits = Limits(ready=1, standby=3, total=4, parallel_restores=2)

    def on_rest(count: int) -> None:
        told.append((count, maker.running))

    pool: Pool[Clone] = Pool(
        "python", restore=maker, limits=limits, jitter=lambda: 1.0, on_rest=on_rest
    )
    async with pool:
        assert told == []
        first = await pool.acquire(deadline=soon())
        others = [acquiring(pool) for _ in range(3)]
        await settle()
        at_first = len(told)
        clones = await asyncio.gather(*others)
        assert told[at_first:] == [(3, 0)] * (len(told) - at_first)  # never beside a restore
        for clone in (first, *clones):
            await end(pool, clone)
        await pass_time(5.0)
        pool.resize(Limits(ready=1, total=4))
        await settle()
        assert told[-1] == (0, 0)
        pool.resize(limits)
        assert told[-1] == (3, 0)
    assert told[-1][0] == 0
    assert {running for _, running in told[:-1]} == {0}


def test_what_waits_counts_in_its_tenants_quota() -> None:
    def entry(standby: int) -> Entry:
        spec = MachineSpec(
            root=Path("root"),
            memory_bytes=256 << 20,
            accelerator=Accelerator.TCG,
            transport=Transport.SERIAL,
            qemu_version="10.0",
        )
        limits = Limits(ready=1, standby=standby)
        name = key_of("mine", "tenant")
        return Entry(name=name, digest="", image_name="", spec=spec, limits=limits, created_ns=0)

    more, less = entry(3).usage, entry(0).usage
    assert more.memory_bytes - less.memory_bytes == 3 * STANDBY_BYTES
    assert more - less == type(more)(memory_bytes=3 * STANDBY_BYTES)
