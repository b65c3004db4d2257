"""A descent: who the clone is afterwards, and what its clock and its generators do."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from tests.fakes import FakeEngine, Faults
from vmpool import clone
from vmpool.clone import Clone, RestoreDeadlines, Waiting
from vmpool.errors import EngineError, GuestError, HostError, SnapshotError
from vmpool.model import ClockPolicy, Identity, Preserve, Seed, Unique, Waking
from vmpool.snapshot import Snapshot

DEADLINES = RestoreDeadlines(hello=30.0, identify=30.0, warm=30.0, activate=30.0)
HOUR_NS = 3600 * 10**9
KEY = bytes(range(32))


@dataclass
class Bench:
    """An engine, a template whose own state is what all descend from, and a place for clones."""

    engine: FakeEngine
    base: Snapshot
    clones: Path

    async def stand_by(self) -> Waiting:
        return await clone.stand_by(self.engine, self.base, run=self.clones)

    async def descend(
        self,
        identity: Identity,
        policy: Waking,
        *,
        waiting: Waiting | None = None,
        of: Snapshot | None = None,
    ) -> Clone:
        return await clone.descend(
            waiting or await self.stand_by(),
            of or self.base,
            key=KEY,
            identity=identity,
            policy=policy,
            deadlines=DEADLINES,
        )


@pytest.fixture
async def bench(
    base: Snapshot, engine: FakeEngine, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Bench]:
    clones = tmp_path_factory.mktemp("c")
    yield Bench(engine, base, clones)
    assert not list(clones.iterdir())


async def test_one_that_goes_on_keeps_its_names_and_a_child_has_its_own(bench: Bench) -> None:
    first = await bench.descend(Identity.fresh("first"), Waking())
    known = Identity.known(first.receipt.hostname, first.receipt.machine_id)
    again = await bench.descend(known, Waking(rng=Preserve()))
    try:
        assert again.id != first.id
        assert again.receipt.hostname == "first"
        assert again.receipt.machine_id == first.receipt.machine_id
        assert again.receipt.boot_id != first.receipt.boot_id
        assert "random" in first.receipt.generators
        assert "random" not in again.receipt.generators
        assert first.key == again.key == KEY
    finally:
        await first.kill()
        await again.kill()


async def test_a_frozen_clock_goes_on_from_the_save_and_the_clone_knows(bench: Bench) -> None:
    saved_ns = time.time_ns() - HOUR_NS
    waking = Waking(rng=Seed(7), clock=ClockPolicy.FROZEN, saved_ns=saved_ns)
    frozen = await bench.descend(Identity.fresh("frozen"), waking)
    try:
        assert -HOUR_NS - 60 * 10**9 < frozen.clock_offset_ns <= -HOUR_NS
        assert abs(frozen.receipt.clock_error_ns) < 10**9
        await frozen.machine.pause()
        await frozen.activate()  # which sets it again, and checks
    finally:
        await frozen.kill()


async def test_a_clone_of_a_pool_becomes_what_it_was_not_restored_as(bench: Bench) -> None:
    made = await bench.descend(Identity.fresh("one"), Waking())
    before = made.receipt
    try:
        saved_ns = time.time_ns() - HOUR_NS
        await made.become(Waking(rng=Preserve(), clock=ClockPolicy.FROZEN, saved_ns=saved_ns))
        assert (made.receipt.hostname, made.receipt.machine_id) == ("one", before.machine_id)
        assert "random" not in made.receipt.generators
        assert made.clock_offset_ns < -HOUR_NS
        written = json.loads((made.directory / "clone.json").read_bytes())
        assert written["clock_offset_ns"] == made.clock_offset_ns
        assert written["receipt"]["generators"] == list(made.receipt.generators)
    finally:
        await made.kill()


def test_a_clock_shows_the_present_or_goes_on_late() -> None:
    assert Waking(saved_ns=70).clock_offset_ns(100) == 0
    frozen = Waking(clock=ClockPolicy.FROZEN, saved_ns=70)
    assert frozen.clock_offset_ns(100) == -30


async def test_a_clones_papers_are_for_its_owner_alone(bench: Bench) -> None:
    made = await bench.descend(Identity.fresh("one"), Waking())
    try:
        file = made.directory / "clone.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(made.directory.stat().st_mode) == 0o700
        written = json.loads(file.read_bytes())
        assert written["receipt"]["machine_id"] == made.receipt.machine_id
        assert written["base"]["id"] == bench.base.manifest.id
        assert written["clock_offset_ns"] == 0
        assert KEY.hex() not in repr(made._papers)
        assert repr(KEY) not in repr(made._papers)
    finally:
        await made.kill()


async def test_a_clone_whose_papers_cannot_be_written_is_killed(bench: Bench) -> None:
    waiting = await bench.stand_by()
    (waiting.directory / "clone.json").mkdir()
    pid = waiting.shell.pid
    with pytest.raises(HostError) as raised:
        await bench.descend(Identity.fresh("one"), Waking(), waiting=waiting)
    assert raised.value.error_code == "state_unwritable"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("rng", "lie"),
    [(Unique(), "generators"), (Seed(7), "generators"), (Seed(7), "rng"), (Preserve(), "rng")],
    ids=["unique", "seed", "other", "preserve"],
)
async def test_a_guest_that_does_not_confirm_its_generators_is_killed(
    bench: Bench, rng: Unique | Seed | Preserve, lie: str
) -> None:
    bench.engine.faults = Faults(guest=("--lie", lie))
    with pytest.raises(GuestError) as raised:
        await bench.descend(Identity.fresh("one"), Waking(rng=rng))
    assert raised.value.error_code in {"identity_unconfirmed", "guest_protocol"}


async def test_one_that_waits_in_vain_leaves_nothing(bench: Bench) -> None:
    waiting = await bench.stand_by()
    assert waiting.directory.parent == bench.clones
    assert waiting.id == waiting.directory.name
    await waiting.kill()
    await waiting.kill()
    assert await waiting.wait()


async def test_one_that_cannot_be_killed_is_found_again_by_its_directory(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = await bench.stand_by()

    async def refuse() -> None:
        raise EngineError("it does not end", code="process_stuck")

    with monkeypatch.context() as stuck:
        stuck.setattr(waiting.shell, "kill", refuse)
        with pytest.raises(EngineError):
            await waiting.kill()
    assert waiting.directory.is_dir()
    await waiting.kill()
    assert not waiting.directory.exists()


async def test_one_that_died_while_it_waited_is_no_clone(bench: Bench) -> None:
    waiting = await bench.stand_by()
    await waiting.shell.kill()
    with pytest.raises(EngineError) as raised:
        await bench.descend(Identity.fresh("one"), Waking(), waiting=waiting)
    assert raised.value.error_code == "qemu_died"


async def test_a_state_of_another_template_is_refused(bench: Bench) -> None:
    manifest = msgspec.structs.replace(bench.base.manifest, id="another")
    with pytest.raises(SnapshotError) as raised:
        await bench.descend(
            Identity.fresh("one"), Waking(), of=replace(bench.base, manifest=manifest)
        )
    assert raised.value.error_code == "snapshot_unfit"
