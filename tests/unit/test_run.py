"""One execution in a machine of its own, and the end of that machine whatever happens."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests import fake_host
from tests.api.conftest import IMAGE
from tests.fake_host import OWNER, run_request, until
from tests.fakes import Faults
from vmpool import run
from vmpool.errors import GuestError, GuestFileError, InvalidRequestError, NotFoundError
from vmpool.model import Code, Command, Exited
from vmpool.run import RunRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes import FakeEngine
    from vmpool.host import Host
    from vmpool.sandbox import Sandbox

SLEEP = Command(argv=("sleep", "600"))


async def ended(host: Host) -> None:
    """Return once the run's machine is gone, with all it had."""
    await until(lambda: not host.sandboxes(owner=OWNER))
    assert host.catalogue.status(IMAGE).census.alive == 0
    assert not list((host.settings.run / "clones").iterdir())


@asynccontextmanager
async def running(
    host: Host, wanted: RunRequest
) -> AsyncIterator[tuple[asyncio.Task[Any], Sandbox]]:
    """Start a run; yield it with its sandbox once the program runs."""
    task = asyncio.create_task(host.run(wanted, owner=OWNER))
    await until(lambda: host.sandboxes(owner=OWNER))
    (sandbox,) = host.sandboxes(owner=OWNER)
    await until((sandbox.clone.directory / "home/started").exists)
    try:
        yield task, sandbox
    finally:
        task.cancel()
        await asyncio.wait({task})


STARTED = Command(argv=("/bin/sh", "-c", "echo > started; exec sleep 600"))


async def test_a_run_says_everything_and_leaves_nothing(host: Host) -> None:
    outcome = await host.run(
        run_request(
            Code(source="import sys; print(open('in').read()); print('e', file=sys.stderr); 6*7"),
            files={"in": b"given"},
            collect=("in", "missing"),
        ),
        owner=OWNER,
    )
    assert (outcome.stdout, outcome.stderr) == (b"given\n", b"e\n")
    assert [result.mime["text/plain"] for result in outcome.results] == ["42"]
    assert outcome.exited == Exited(exit_code=0)
    assert outcome.files == {"in": b"given"}
    assert outcome.missing["missing"].error_code == "file_not_found"
    assert not outcome.truncated
    assert outcome.timings.execute_ns > (outcome.timings.first_output_ns or 0) > 0
    await ended(host)


async def test_stdin_is_read_by_the_program(host: Host) -> None:
    outcome = await host.run(
        run_request(Command(argv=("cat",), stdin=True), stdin=b"x" * 300_000), owner=OWNER
    )
    assert outcome.stdout == b"x" * 300_000


async def test_a_program_that_does_not_read_its_stdin_did_nothing_wrong(host: Host) -> None:
    outcome = await host.run(
        run_request(Command(argv=("true",), stdin=True), stdin=b"x" * 3_000_000), owner=OWNER
    )
    assert outcome.exited == Exited(exit_code=0)


async def test_what_is_over_the_limits_is_cut_and_said(host: Host) -> None:
    outcome = await host.run(
        run_request(
            Code(source="print('x' * 5000)\n'y' * 5000"),
            output_limit_bytes=1000,
            result_limit_bytes=1000,
            files={"small": b"1" * 600, "large": b"2" * 600},
            collect=("small", "large"),
            file_limit_bytes=1000,
        ),
        owner=OWNER,
    )
    assert outcome.stdout == b"x" * 1000
    assert outcome.results == ()
    assert outcome.truncated
    assert outcome.files == {"small": b"1" * 600}
    assert outcome.missing["large"].error_code == "file_too_large"


async def test_a_file_without_end_is_given_up_at_the_limit(host: Host) -> None:
    outcome = await host.run(
        run_request(
            Command(argv=("/bin/sh", "-c", "truncate -s 100G sparse")),
            collect=("sparse",),
            file_limit_bytes=1000,
        ),
        owner=OWNER,
    )
    assert outcome.missing["sparse"].error_code == "file_too_large"


async def test_a_run_over_its_time_is_killed_by_the_guest(host: Host) -> None:
    outcome = await host.run(run_request(Command(argv=("sleep", "600"), timeout=0.2)), owner=OWNER)
    assert outcome.exited.timed_out


async def test_a_guest_that_does_not_keep_its_time_is_given_up(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "GRACE", 0.2)
    stuck = Command(argv=STARTED.argv, timeout=3.0)
    async with running(host, run_request(stuck)) as (task, sandbox):
        os.kill(sandbox.clone.machine.pid, signal.SIGSTOP)
        with pytest.raises(GuestError) as raised:
            await task
    assert raised.value.error_code == "guest_unresponsive"
    await ended(host)


async def test_a_guest_that_does_not_take_files_is_given_up(
    host: Host, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "TRANSFER_TIMEOUT", 0.2)
    engine.faults = Faults(guest=("--ignore", "write"))
    with pytest.raises(GuestError) as raised:
        await host.run(run_request(SLEEP, files={"in": b"x"}), owner=OWNER)
    assert raised.value.error_code == "guest_unresponsive"
    await ended(host)


async def test_a_caller_that_leaves_takes_the_machine_along(host: Host) -> None:
    async with running(host, run_request(STARTED)) as (task, _):
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
    await ended(host)


async def test_a_guest_that_dies_ends_the_run_with_its_cause(host: Host) -> None:
    async with running(host, run_request(STARTED)) as (task, sandbox):
        os.kill(sandbox.clone.machine.pid, signal.SIGKILL)
        with pytest.raises(Exception, match="QEMU ended with -9") as raised:
            await task
    assert getattr(raised.value, "error_code", "") == "qemu_died"
    await ended(host)


async def test_a_sandbox_that_is_killed_ends_the_run(host: Host) -> None:
    async with running(host, run_request(STARTED)) as (task, sandbox):
        await host.kill(sandbox.id, owner=OWNER)
        with pytest.raises(NotFoundError) as raised:
            await task
    assert raised.value.error_code == "sandbox_ended"
    await ended(host)


@pytest.mark.parametrize(
    ("fields", "kind", "code"),
    [
        ({"files": {"/proc/refused": b"x"}}, GuestFileError, None),
        ({"what": Command(argv=("no-such-program",))}, InvalidRequestError, "program_not_found"),
        (
            {"what": Command(argv=("true",), user="stranger")},
            InvalidRequestError,
            "unknown_user",
        ),
    ],
    ids=["file", "program", "user"],
)
async def test_a_run_that_the_guest_refuses_leaves_nothing(
    host: Host, fields: dict[str, Any], kind: type[Exception], code: str | None
) -> None:
    with pytest.raises(kind) as raised:
        await host.run(run_request(**{"what": SLEEP} | fields), owner=OWNER)
    assert code in {None, getattr(raised.value, "error_code", None)}
    await ended(host)


async def test_a_run_in_a_clone_whose_clock_is_off_is_refused(
    host: Host, engine: FakeEngine
) -> None:
    engine.faults = Faults(guest=("--lie", "clock-later"))
    with pytest.raises(GuestError) as raised:
        await host.run(run_request(Code(source="print(6*7)")), owner=OWNER)
    assert raised.value.error_code == "identity_unconfirmed"
    await ended(host)


async def test_what_runs_before_its_clone_is_awake_is_told_when_that_is(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await host.create(fake_host.wanted(), owner=OWNER)
    confirmed = asyncio.Event()
    monkeypatch.setattr(made.clone, "awake", confirmed.wait)

    told: list[int] = []

    async def run_it() -> None:
        async with made.execute(STARTED) as execution:
            told.append(execution.pid)

    running_it = asyncio.create_task(run_it())
    await until((made.clone.directory / "home/started").exists)
    await made.clone.agent.processes.list()  # answered behind the word that it has started
    assert not told
    confirmed.set()
    await running_it
    assert told


async def test_what_a_clone_refuses_before_it_is_awake_is_told_when_that_is(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await host.create(fake_host.wanted(), owner=OWNER)
    asked, confirmed = asyncio.Event(), asyncio.Event()

    async def awake() -> None:
        asked.set()
        await confirmed.wait()

    monkeypatch.setattr(made.clone, "awake", awake)

    async def run_it() -> None:
        async with made.execute(Command(argv=("true",), user="nobody-here")):
            pytest.fail("it was started")

    refused = asyncio.create_task(run_it())
    waiting = asyncio.create_task(asked.wait())
    await asyncio.wait({refused, waiting}, return_when=asyncio.FIRST_COMPLETED)
    assert not refused.done()
    confirmed.set()
    with pytest.raises(InvalidRequestError) as raised:
        await refused
    assert raised.value.error_code == "unknown_user"
    await waiting


async def test_what_a_clone_refuses_that_never_wakes_is_not_told(
    host: Host, engine: FakeEngine
) -> None:
    engine.faults = Faults(guest=("--lie", "clock-later"))
    with pytest.raises(GuestError) as raised:
        await host.run(run_request(Command(argv=("true",), user="nobody-here")), owner=OWNER)
    assert raised.value.error_code == "identity_unconfirmed"
    await ended(host)


async def test_a_clone_that_is_not_awake_lends_no_agent(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await host.create(fake_host.wanted(), owner=OWNER)
    monkeypatch.setattr(made.clone, "awake", asyncio.Event().wait)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05), made.attended():
            pytest.fail("the agent was lent")
