"""How a host comes up: alone, after whatever happened to the one before it, or not at all."""

from __future__ import annotations

import asyncio
import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.api.conftest import IMAGE
from tests.fake_host import OWNER, add_template, opened, run_request, until, wanted
from tests.fakes import FakeEngine, FakeMachine
from vmpool import snapshot
from vmpool.catalogue import Catalogue, TemplateState
from vmpool.engine import qemu
from vmpool.engine.qemu import record
from vmpool.errors import CapacityError, ConflictError, EngineError, HostError, StoreError
from vmpool.lifecycle import EndReason, OnStop
from vmpool.model import Code, Command, Exited
from vmpool.policy import Limits
from vmpool.store.audit import AuditFilter

if TYPE_CHECKING:
    from vmpool.host import Host
    from vmpool.lineages import Lineage
    from vmpool.model import Attachment
    from vmpool.snapshot import Snapshot

ROOT = Path(__file__).parents[2]
ROUNDS = 24
SWEEP_SECONDS = 15.0


async def refused(state: Path, **settings: Any) -> str:
    """Return the code of what an opening raised."""
    with pytest.raises((ConflictError, HostError, StoreError)) as raised:
        async with opened(state, FakeEngine(), **settings):
            pass
    return raised.value.error_code


async def test_a_second_server_on_the_same_directories_is_refused(
    host: Host, state: Path, tmp_path: Path
) -> None:
    assert await refused(state) == "state_in_use"
    assert await refused(state, run=tmp_path / "run") == "state_in_use"
    assert await refused(tmp_path / "state", run=host.settings.run) == "state_in_use"
    made = await host.create(wanted(), owner=OWNER)
    assert host.sandboxes(owner=OWNER) == [made]


@pytest.mark.parametrize("what", ["state", "run", "lock", "clones"])
async def test_directories_that_cannot_be_used_are_named_with_a_remedy(
    state: Path, what: str
) -> None:
    if what == "lock":
        (state / "lock").mkdir()
    elif what == "clones":
        (state / "run").mkdir()
        (state / "run/clones").touch()
    elif what == "run":
        (state / "run").touch()
    else:
        state = state / "images/names" / IMAGE
    assert await refused(state) == "state_unwritable"


async def test_a_lock_that_a_killed_servers_child_lets_go_of_bars_no_start(state: Path) -> None:
    state.mkdir(exist_ok=True)
    held = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(held, fcntl.LOCK_EX)
    asyncio.get_running_loop().call_later(0.2, os.close, held)
    async with opened(state, FakeEngine()) as host:
        assert not host.catalogue.statuses


async def test_an_opening_that_fails_on_the_way_leaves_the_directories_free(state: Path) -> None:
    journal = state / "vmpool.db"
    journal.write_bytes(b"this is not a journal" * 100)
    assert await refused(state) == "store_damaged"
    journal.unlink()
    async with opened(state, FakeEngine()) as host:
        assert not host.catalogue.statuses


async def test_what_a_server_left_half_done_is_gone_after_the_next_start(state: Path) -> None:
    async with opened(state, FakeEngine()) as host:
        await add_template(host)
    half = snapshot.begin(state / "snapshots")
    (half / "memory").write_bytes(b"half")
    dead = state / "run/clones/dead"
    dead.mkdir()
    (dead / "overlay").touch()
    async with opened(state, FakeEngine()) as host:
        assert not half.exists()
        assert not dead.exists()
        assert (await host.catalogue.settled("python")).state is TemplateState.READY


def machines(state: Path) -> list[int]:
    """Return the processes of a state directory's machines."""
    mark, found = os.fsencode(state / "run"), []
    for directory in Path("/proc").iterdir():
        try:
            if directory.name.isdecimal() and mark in (directory / "cmdline").read_bytes():
                found.append(int(directory.name))
        except OSError:
            continue  # gone meanwhile
    return found


class Killed:
    """A server as a process, which is killed and never stopped."""

    def __init__(self, state: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.killed_server", state],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Killed:
        return self

    def says(self, word: str) -> None:
        """Return once it has said a word."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == word:
                return
        pytest.fail("the server ended by itself")

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


async def settled(state: Path) -> tuple[list[str], list[str]]:
    """Start after a killed server; return what it had that was adopted, and what was lost."""
    async with opened(state, FakeEngine()) as host:
        adopted = host.sandboxes(owner=OWNER)
        # What is open has a machine that answers, before the first template is up again.
        assert {row.id for row in await host.store.open_sandboxes()} == {box.id for box in adopted}
        for sandbox in adopted:
            async with sandbox.execute(Command(argv=("/bin/true",))) as execution:
                assert [event async for event in execution][-1] == Exited(exit_code=0)
        for status in host.catalogue.statuses:
            await host.catalogue.settled(status.name)
            assert status.name != IMAGE or host.catalogue.pool(IMAGE).census.held == len(adopted)
        lost = await host.store._rows("sandboxes", "id", "end_reason = 'server_lost'", [])
    await until(lambda: not machines(state))  # forks of an agent end when they see it gone
    assert not list((state / "run/clones").iterdir())
    assert not list((state / "snapshots").glob(f"{snapshot.PARTIAL}*"))
    return [sandbox.id for sandbox in adopted], [row["id"] for row in lost]


async def test_after_kill_9_the_next_start_adopts_what_ran_and_ends_the_rest(state: Path) -> None:
    with Killed(state) as server:
        await asyncio.to_thread(server.says, "2")
        assert machines(state)
    assert machines(state)  # they outlive it
    adopted, lost = await settled(state)
    assert adopted
    assert not lost


async def test_killed_at_any_moment_a_server_leaves_nothing_that_lies(state: Path) -> None:
    moments = random.Random(8)
    end = time.monotonic() + SWEEP_SECONDS
    rounds = 0
    while rounds < 3 or (rounds < ROUNDS and time.monotonic() < end):
        with Killed(state) as server:
            if rounds:  # the first is killed as it makes its template, perhaps
                await asyncio.to_thread(server.says, "ready")
            await asyncio.sleep(moments.uniform(0, 0.4))  # the moment is what is tried
        await settled(state)
        rounds += 1


async def test_a_sandbox_whose_machine_died_with_the_server_is_lost_and_why_is_known(
    state: Path,
) -> None:
    with Killed(state) as server:
        await asyncio.to_thread(server.says, "1")
    for pid in machines(state):
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not machines(state))
    adopted, lost = await settled(state)
    assert not adopted
    assert lost
    async with opened(state, FakeEngine()) as host:
        with pytest.raises(Exception, match=EndReason.SERVER_LOST.value) as raised:
            await host.sandbox(lost[0], owner=OWNER)
        assert getattr(raised.value, "error_code", "") == "sandbox_ended"
        entries = await host.store.audit.entries(100, AuditFilter(subject=lost[0]))
        assert ("sandbox.adopt", "machine_lost") in [(e.action, e.outcome) for e in entries]


async def test_a_guest_that_hangs_is_reaped_and_its_sandbox_lost(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmpool.inheritance.ADOPTION_TIMEOUT", 0.5)
    with Killed(state) as server:
        await asyncio.to_thread(server.says, "1")
    for directory in (state / "run/clones").iterdir():
        if (found := record.read(directory)) is not None:  # a spare may be half restored
            os.kill(found.pid, signal.SIGSTOP)
    monkeypatch.setattr(FakeMachine, "resume", _nothing)
    adopted, lost = await settled(state)
    assert not adopted
    assert lost


async def test_a_hypervisor_that_answers_nonsense_bars_no_start(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Killed(state) as server:
        await asyncio.to_thread(server.says, "3")
    hostile: list[str] = []
    adopt = FakeEngine.adopt

    async def nonsense(engine: FakeEngine, template: Snapshot, at: Attachment) -> FakeMachine:
        if not hostile:
            hostile.append(at.directory.name)
            raise KeyError("status")  # as of an answer that has none
        return await adopt(engine, template, at)

    monkeypatch.setattr(FakeEngine, "adopt", nonsense)
    adopted, lost = await settled(state)
    assert adopted
    assert len(lost) == 1


async def test_what_it_takes_to_check_a_snapshot_is_no_time_of_an_adoption(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmpool.inheritance.ADOPTION_TIMEOUT", 5.0)
    with Killed(state) as server:
        await asyncio.to_thread(server.says, "1")
    lineage = Catalogue.lineage_of_running
    checked = asyncio.Event()

    async def slow(catalogue: Catalogue, base: str, *, owner: str | None = None) -> Lineage:
        asyncio.get_running_loop().call_later(5.5, checked.set)
        await checked.wait()
        return await lineage(catalogue, base, owner=owner)

    monkeypatch.setattr(Catalogue, "lineage_of_running", slow)
    adopted, lost = await settled(state)
    assert adopted
    assert not lost


async def _nothing(_: FakeMachine) -> None:
    """Leave a stopped machine as it is."""


async def test_an_orphan_that_cannot_be_ended_is_kept_and_bars_no_start(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clones = state / "run/clones"
    for name in ("dead", "stuck"):
        (clones / name).mkdir(parents=True)
    end = qemu.reap

    async def reap(directory: Path) -> bool:
        if directory.name == "stuck":
            raise EngineError("process 1 did not end", code="process_stuck")
        return await end(directory)

    monkeypatch.setattr(qemu, "reap", reap)
    async with opened(state, FakeEngine()):
        assert [left.name for left in clones.iterdir()] == ["stuck"]


@pytest.mark.parametrize("how", ["asked", "by its settings"])
async def test_a_server_that_makes_way_leaves_its_sandboxes_to_the_next(
    state: Path, how: str
) -> None:
    on_stop = OnStop.KILL if how == "asked" else OnStop.KEEP
    async with opened(state, FakeEngine(), on_stop=on_stop) as host:
        await add_template(host, limits=Limits(ready=1))
        sandbox = await host.create(wanted(), owner=OWNER)
        clone = sandbox.clone.id
        if how == "asked":
            host.hand_over()
            for request in (
                host.create(wanted(), owner=OWNER),
                host.run(run_request(Code(source="pass")), owner=OWNER),
            ):
                with pytest.raises(CapacityError) as raised:
                    await request
                assert raised.value.error_code == "server_draining"
    assert [left.name for left in (state / "run/clones").iterdir()] == [clone]
    assert await settled(state) == ([sandbox.id], [])


@pytest.mark.parametrize("what", ["running", "paused", "kept"])
async def test_a_base_that_nobody_is_left_to_need_goes_with_the_next_start(
    state: Path, what: str
) -> None:
    async with opened(state, FakeEngine(), on_stop=OnStop.KEEP) as host:
        await add_template(host)
        sandbox = await host.create(wanted(), owner=OWNER)
        if what == "paused":
            await host.pause(sandbox.id, owner=OWNER)
        elif what == "kept":
            await host.checkpoint(sandbox.id, owner=OWNER, name=None)
        await host.catalogue.remove(IMAGE)
        if what == "kept":
            await host.kill(sandbox.id, owner=OWNER)
    assert list((state / "snapshots").iterdir())
    for pid in machines(state):
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not machines(state))
    for checkpoint in (state / "checkpoints").iterdir():
        shutil.rmtree(checkpoint)
    async with opened(state, FakeEngine()):
        assert not list((state / "snapshots").iterdir())
