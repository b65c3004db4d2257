"""Processes that stay, through both Python clients."""

from __future__ import annotations

import asyncio
import inspect
import signal
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest

import vmpool
from tests.blocking_twin import Twin
from vmpool.client import blocking_processes, processes
from vmpool.errors import ConflictError, InvalidRequestError, NotFoundError
from vmpool.model import Stream

if TYPE_CHECKING:
    from tests.api.conftest import Server

GRACE = 30.0


@pytest.fixture(params=["asynchronous", "blocking"])
async def sandbox(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[Any]:
    """A sandbox through a client of either kind."""
    make: Callable[..., Any] = vmpool.AsyncClient
    if request.param == "blocking":
        make = lambda *words, **options: Twin(vmpool.Client(*words, **options))  # noqa: E731
    async with make(server.url, token=server.token) as client, client.sandbox() as made:
        async with asyncio.timeout(GRACE):
            yield made


async def test_a_process_is_started_fed_and_waited_for(sandbox: Any) -> None:
    process = await sandbox.processes.start("bash", "-c", "cat; exit 4", tag="mine", cwd="/")
    await process.send("a" * 300_000)
    await process.send(b"\n")
    await process.close_stdin()
    ended = await process.wait()
    assert (ended.exit_code, ended.signal) == (4, None)
    (info,) = await sandbox.processes.list()
    assert info == await process.look()
    assert (info.pid, info.tag, info.argv[0]) == (process.pid, "mine", "bash")
    assert (info.output_bytes, info.ended.exit_code, info.stdin_open) == (300_001, 4, False)
    with pytest.raises(ConflictError) as raised:
        await process.send("more")
    assert raised.value.error_code == "process_ended"
    await process.kill()


async def test_a_process_is_followed_and_talked_to(sandbox: Any) -> None:
    started = await sandbox.processes.start("bash", "-c", "while read a; do echo got $a; done")
    process = sandbox.processes.find(started.pid)
    async with process.attach() as attachment:
        events = aiter(attachment)
        assert await anext(events) == vmpool.Attached(process.pid, 0)
        await attachment.write("one\n")
        assert await anext(events) == vmpool.Output(Stream.STDOUT, b"got one\n")
    async with process.attach(backlog_bytes=1000) as attachment:
        await attachment.write("two\n")
        await attachment.close_stdin()
        told = [event async for event in attachment]
    assert b"".join(e.data for e in told if isinstance(e, vmpool.Output)) == b"got one\ngot two\n"
    assert told[-1].exit_code == 0


async def test_a_process_at_a_terminal_is_resized_and_signalled(sandbox: Any) -> None:
    process = await sandbox.processes.start(
        "bash", "-c", "stty size; read x; stty size; sleep 1000",
        pty=vmpool.TerminalSize(rows=10, cols=20),
    )  # fmt: skip
    async with process.attach(backlog_bytes=100) as attachment:
        seen = b""
        async for event in attachment:
            if isinstance(event, vmpool.Output):
                assert event.stream is Stream.PTY
                seen += event.data
            if seen == b"10 20\r\n":
                await attachment.resize(30, 40)
                await attachment.write("\r")
            if seen.endswith(b"30 40\r\n"):
                await attachment.signal(signal.SIGTERM)
        assert event.signal == signal.SIGTERM
    assert (await process.look()).pty == processes.TerminalSize(rows=30, cols=40)


async def test_a_process_is_resized_signalled_and_killed_from_outside(sandbox: Any) -> None:
    process = await sandbox.processes.start("sleep", "1000", pty=vmpool.TerminalSize())
    await process.resize(50, 60)
    assert (await process.look()).pty == vmpool.TerminalSize(rows=50, cols=60)
    await process.signal(signal.SIGUSR1)
    assert (await process.wait()).signal == signal.SIGUSR1
    other = await sandbox.processes.start("sleep", "1000")
    await other.kill()
    assert (await other.wait()).signal == signal.SIGKILL


async def test_what_cannot_be_done_says_why(sandbox: Any) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        await sandbox.processes.start("there-is-none")
    assert refused.value.error_code == "program_not_found"
    nobody = sandbox.processes.find(1)
    for asked in (nobody.look(), nobody.wait(), nobody.kill(), nobody.send("x")):
        with pytest.raises(NotFoundError) as missing:
            await asked
        assert missing.value.error_code == "process_not_found"
    with pytest.raises(NotFoundError):
        async with nobody.attach() as attachment:
            [event async for event in attachment]


@pytest.mark.parametrize("name", ["Processes", "Process", "Attachment"])
def test_the_blocking_twin_has_every_method_under_the_same_arguments(name: str) -> None:
    asynchronous = getattr(processes, f"Async{name}")
    twin = getattr(blocking_processes, name)
    for word, method in inspect.getmembers(asynchronous, inspect.isfunction):
        if not word.startswith("_"):
            ours = inspect.signature(getattr(twin, word)).parameters
            assert list(ours) == list(inspect.signature(method).parameters), word
