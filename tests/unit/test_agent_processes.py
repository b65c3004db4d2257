"""Kept processes and terminals, run by the real agent in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import struct
import sys
from typing import TYPE_CHECKING

import pytest

from tests import fake_guest
from tests.connected_agent import connected
from tests.processes import gone, stopped
from vmpool.agent import Agent
from vmpool.errors import ConflictError, GuestError, InvalidRequestError, NotFoundError, TaskError
from vmpool.model import Attached, Command, Exited, Output, Started, Stream, TerminalSize

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from vmpool.agent.processes import Attachment, ProcessEvent
    from vmpool.model import ProcessInfo

# An agent that outlives a test forks spares when it likes.
pytestmark = pytest.mark.shares_host

SIZE = TerminalSize(rows=24, cols=80)
SHOWS_ITS_SIZE = """
import os, signal, sys
def show(*_):
    os.write(1, b"%d %d\\n" % os.get_terminal_size())
signal.signal(signal.SIGWINCH, show)
print(os.environ["TERM"], *map(os.isatty, range(3)), os.tcgetpgrp(0) == os.getpid(), flush=True)
show()
while True:
    signal.pause()
"""
GRACE = 30.0
HELD = 64 << 10
"""What a backlog holds, less what its pieces cost."""


def shell(line: str, **options: object) -> Command:
    return Command(argv=("/bin/bash", "-c", line), **options)  # type: ignore[arg-type]


def text(events: list[ProcessEvent], stream: Stream = Stream.STDOUT) -> bytes:
    return b"".join(e.data for e in events if isinstance(e, Output) and e.stream is stream)


async def to_the_end(attachment: Attachment) -> list[ProcessEvent]:
    async with asyncio.timeout(GRACE):
        return [event async for event in attachment]


async def read_until(attachment: Attachment, wanted: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(GRACE):
        async for event in attachment:
            if isinstance(event, Output):
                seen += event.data
            if wanted in seen:
                return seen
    raise AssertionError(f"{wanted!r} never came, but {seen!r}")


async def look(agent: Agent, pid: int) -> ProcessInfo:
    (found,) = [each for each in await agent.processes.list() if each.pid == pid]
    return found


async def until(agent: Agent, pid: int, holds: Callable[[ProcessInfo], object]) -> ProcessInfo:
    """Return a process once something holds of it, which nothing else tells."""
    async with asyncio.timeout(GRACE):
        while not holds(found := await look(agent, pid)):
            pass
    return found


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for each in data:
        yield each


async def follow(agent: Agent, pid: int, backlog_bytes: int = 1 << 20) -> list[ProcessEvent]:
    async with agent.processes.attach(pid, backlog_bytes=backlog_bytes) as attachment:
        return await to_the_end(attachment)


async def test_a_process_goes_on_when_its_channel_is_closed(guest: Path) -> None:
    async with connected(guest) as agent:
        what = shell("echo before; read word; echo got $word; exit 7", stdin=True)
        async with agent.processes.begin(what) as attachment:
            assert await anext(attachment) == Started(attachment.pid)
            assert await read_until(attachment, b"before") == b"before\n"
        assert (await look(agent, attachment.pid)).ended is None
        async with agent.processes.attach(attachment.pid) as other:
            assert await anext(other) == Attached(attachment.pid, len(b"before\n"))
            await agent.processes.input(attachment.pid, pieces(b"the ", b"word\n"))
            events = await to_the_end(other)
    assert text(events) == b"got the word\n"
    assert events[-1] == Exited(exit_code=7)


async def test_an_end_and_what_came_before_it_are_told_to_those_who_attach_later(
    guest: Path,
) -> None:
    async with connected(guest) as agent:
        pid = await agent.processes.start(shell("echo out; echo err >&2; kill -9 $$"))
        await until(agent, pid, lambda process: process.ended)
        events = await follow(agent, pid)
        assert await follow(agent, pid) == events
        assert events[0] == Attached(pid, 0)
        assert (text(events), text(events, Stream.STDERR)) == (b"out\n", b"err\n")
        assert events[-1] == Exited(exit_code=None, signal=signal.SIGKILL)
        assert await follow(agent, pid, 0) == [Attached(pid, 8), events[-1]]
        assert text(await follow(agent, pid, 2), Stream.STDERR) == b"r\n"


async def test_a_process_is_listed_with_what_it_was_begun_with(guest: Path) -> None:
    what = shell("cat", env={"A": "1", "ODD": "\udcff"}, cwd="/", stdin=True)
    async with connected(guest) as agent:
        pid = await agent.processes.start(what, tag="word")
        listed = await look(agent, pid)
        await agent.processes.input(pid, pieces(b"12345"))
        await until(agent, pid, lambda process: process.output_bytes == 5)
        await agent.processes.close_stdin(pid)
        ended = await until(agent, pid, lambda process: process.ended)
    assert (listed.argv, listed.env, listed.cwd) == (what.argv, what.env, "/")
    assert (listed.tag, listed.user, listed.terminal) == ("word", "user", None)
    assert listed.takes_input
    assert not listed.cut
    assert ended.ended == Exited(exit_code=0)
    assert (ended.output_bytes, ended.backlog_bytes, ended.takes_input) == (5, 5, False)


async def test_of_large_arguments_only_the_beginning_is_remembered(guest: Path) -> None:
    async with connected(guest) as agent:
        what = Command(argv=("true", "x" * 9000, "y" * 9000, "z"), env={"A": "1"})
        listed = await look(agent, await agent.processes.start(what))
    assert (listed.argv, listed.env, listed.cut) == (("true", "x" * 9000), {}, True)


async def test_what_nobody_reads_does_not_hold_a_process_back_and_is_dropped(guest: Path) -> None:
    total = 32 << 20
    async with connected(guest) as agent:
        pid = await agent.processes.start(shell(f"yes | head -c {total}"))
        ended = await until(agent, pid, lambda process: process.ended)
        events = await follow(agent, pid)
    assert ended.output_bytes == total
    assert HELD - 4096 < ended.backlog_bytes <= HELD
    assert events[0] == Attached(pid, total - ended.backlog_bytes)
    assert len(text(events)) == ended.backlog_bytes


async def test_crumbs_of_output_cost_no_more_than_they_may(guest: Path) -> None:
    line = "for i in {1..3000}; do printf o; printf e >&2; done"
    async with connected(guest) as agent:
        pid = await agent.processes.start(shell(line))
        ended = await until(agent, pid, lambda process: process.ended)
    assert ended.output_bytes == 6000
    assert ended.backlog_bytes <= 6000


async def test_a_reader_that_does_not_read_holds_the_process_back(guest: Path) -> None:
    total = 4 << 20
    async with (
        connected(guest) as agent,
        agent.processes.begin(shell(f"yes | head -c {total}")) as slow,
    ):
        async with agent.processes.attach(slow.pid) as quick:
            held = 0
            # The quick one is told as much as the slow one leaves room for, and no more.
            with contextlib.suppress(TimeoutError):
                while True:
                    async with asyncio.timeout(0.5):
                        event = await anext(quick)
                    held += len(event.data) if isinstance(event, Output) else 0
            assert held < total // 4
        assert (await look(agent, slow.pid)).ended is None
        events = await to_the_end(slow)
    assert len(text(events)) == total
    assert events[-1] == Exited(exit_code=0)


async def test_a_reader_that_leaves_holds_nobody_back(guest: Path) -> None:
    async with connected(guest) as agent:
        async with agent.processes.begin(shell(f"yes | head -c {4 << 20}")) as slow:
            # As much as the channel's window takes, and what is due to it in the backlog.
            await until(agent, slow.pid, lambda process: process.output_bytes > (256 + 32) << 10)
        ended = await until(agent, slow.pid, lambda process: process.ended)
    assert ended.ended == Exited(exit_code=0)


async def test_input_that_is_not_read_goes_with_whoever_sent_it(guest: Path) -> None:
    async with connected(guest) as agent:
        pid = await agent.processes.start(Command(argv=("cat",), stdin=True))
        await agent.processes.signal(pid, signal.SIGSTOP)
        await stopped(pid)
        for _ in range(3):
            async with agent.processes.attach(pid) as attachment:
                await attachment.write_stdin(bytes(200_000))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await agent.processes.input(pid, pieces(bytes(200_000)))
        await agent.processes.signal(pid, signal.SIGCONT)
        await agent.processes.close_stdin(pid)
        ended = await until(agent, pid, lambda process: process.ended)
    # No more than the pipe took while nobody read.
    assert 0 < ended.output_bytes <= 64 << 10


async def test_who_goes_on_giving_input_is_told_that_the_process_has_ended(guest: Path) -> None:
    hold = asyncio.Event()

    async def word_and_then_nothing() -> AsyncIterator[bytes]:
        yield b"word\n"
        await hold.wait()

    async with connected(guest) as agent, asyncio.timeout(GRACE):
        pid = await agent.processes.start(shell("read word", stdin=True))
        with pytest.raises(ConflictError) as caught:
            await agent.processes.input(pid, word_and_then_nothing())
    assert caught.value.error_code == "process_ended"


async def test_a_process_that_ends_with_all_its_input_has_it(guest: Path) -> None:
    async def word_and_its_end() -> AsyncIterator[bytes]:
        yield b"word\n"
        await gone(pid)

    async with connected(guest) as agent, asyncio.timeout(GRACE):
        pid = await agent.processes.start(shell("read word", stdin=True))
        await agent.processes.input(pid, word_and_its_end())


async def test_input_that_fails_on_its_way_is_told_to_whoever_gives_it(guest: Path) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"word\n"
        raise InvalidRequestError("no more of it")

    async with connected(guest) as agent, asyncio.timeout(GRACE):
        pid = await agent.processes.start(shell("read word; read more", stdin=True))
        with pytest.raises(InvalidRequestError):
            await agent.processes.input(pid, broken())
        assert (await look(agent, pid)).ended is None


async def test_all_who_are_attached_are_told_the_same(guest: Path) -> None:
    async with connected(guest) as agent:
        pid = await agent.processes.start(shell("read x; seq 20000; exit 3", stdin=True))
        async with (
            agent.processes.attach(pid) as one,
            agent.processes.attach(pid) as other,
            asyncio.TaskGroup() as tasks,
        ):
            told = [tasks.create_task(to_the_end(each)) for each in (one, other)]
            await one.write_stdin(b"go\n")
    assert told[0].result() == told[1].result()
    assert text(told[0].result()) == b"".join(b"%d\n" % i for i in range(1, 20001))
    assert told[0].result()[-1] == Exited(exit_code=3)


async def test_a_lost_host_kills_what_is_in_the_foreground_and_nothing_that_is_kept(
    guest: Path,
) -> None:
    async with connected(guest) as agent:
        kept = await agent.processes.start(shell("read word; echo got $word", stdin=True))
        async with agent.execute(shell("sleep 1000")) as foreground:
            leader = os.pidfd_open(foreground.pid)
            agent._link._writer.transport.abort()
            with pytest.raises(GuestError):
                await asyncio.wait_for(to_the_end(foreground), GRACE)  # type: ignore[arg-type]
    async with connected(guest) as agent:
        await readable(leader)
        async with agent.processes.attach(kept) as attachment:
            await attachment.write_stdin(b"word\n")
            await attachment.close_stdin()
            assert text(await to_the_end(attachment)) == b"got word\n"


async def readable(fd: int) -> None:
    """Return when a pidfd's process has ended; closes it."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(fd, ended.set)
    try:
        async with asyncio.timeout(GRACE):
            await ended.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def test_a_timeout_kills_the_group_while_nobody_is_attached(guest: Path) -> None:
    async with connected(guest) as agent:
        what = shell("sleep 1000 & echo $!; wait", timeout=0.2)
        pid = await agent.processes.start(what)
        events = await follow(agent, pid)
    ended = events[-1]
    assert isinstance(ended, Exited)
    assert (ended.signal, ended.timed_out) == (signal.SIGKILL, True)
    # The one that the agent did not start is reaped by whoever adopts orphans, when it likes.
    await gone(pid, probe=os.killpg)


async def test_sigkill_answers_when_the_id_is_free_and_what_ended_takes_no_more(
    guest: Path,
) -> None:
    async with connected(guest) as agent:
        # A grandchild in a session of its own holds the output open.
        pid = await agent.processes.start(shell("setsid sleep 1 & exec sleep 1000", stdin=True))
        await agent.processes.signal(pid, signal.SIGKILL)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        ended = await until(agent, pid, lambda process: process.ended)
        assert ended.ended == Exited(exit_code=None, signal=signal.SIGKILL)
        for refused in (
            agent.processes.signal(pid, signal.SIGTERM),
            agent.processes.input(pid, pieces(b"x")),
            agent.processes.resize(pid, SIZE),
        ):
            with pytest.raises(ConflictError) as raised:
                await refused
            assert raised.value.error_code == "process_ended"


async def test_a_signal_reaches_the_group(guest: Path) -> None:
    line = "trap 'echo caught; exit 4' TERM; echo ready; while :; do sleep 0.05; done"
    async with connected(guest) as agent, agent.processes.begin(shell(line)) as attachment:
        await read_until(attachment, b"ready")
        await agent.processes.signal(attachment.pid, signal.SIGTERM)
        events = await to_the_end(attachment)
    assert text(events) == b"caught\n"
    assert events[-1] == Exited(exit_code=4)


async def test_what_is_no_kept_process_is_not_touched(guest: Path) -> None:
    async with connected(guest) as agent, agent.execute(shell("sleep 1000")) as foreground:
        for pid in (foreground.pid, os.getpid(), 1, 0, -1):
            for refused in (
                agent.processes.signal(pid, signal.SIGKILL),
                agent.processes.input(pid, pieces(b"x")),
                agent.processes.resize(pid, SIZE),
                follow(agent, pid),
            ):
                with pytest.raises(NotFoundError) as raised:
                    await refused
                assert raised.value.error_code == "process_not_found"
        assert not [each for each in await agent.processes.list() if each.pid == foreground.pid]


async def test_what_cannot_be_asked_of_a_process_says_why(guest: Path) -> None:
    async with connected(guest) as agent:
        pid = await agent.processes.start(shell("sleep 1000"))
        with pytest.raises(ConflictError, match="input") as raised:
            await agent.processes.input(pid, pieces(b"x"))
        assert raised.value.error_code == "stdin_closed"
        with pytest.raises(ConflictError) as raised:
            await agent.processes.resize(pid, SIZE)
        assert raised.value.error_code == "no_terminal"
        with pytest.raises(InvalidRequestError, match="signal"):
            await agent.processes.signal(pid, 4000)
        with pytest.raises(InvalidRequestError):
            await follow(agent, pid, -1)
        with pytest.raises(InvalidRequestError, match="tag"):
            await agent.processes.start(shell(":"), tag="x" * 257)
        with pytest.raises(InvalidRequestError, match="rows"):
            await agent.processes.start(shell(":"), terminal=TerminalSize(rows=0, cols=80))
        await agent.processes.signal(pid, signal.SIGKILL)


async def test_one_that_never_started_says_why_and_is_not_kept(guest: Path) -> None:
    async with connected(guest) as agent:
        before = await agent.processes.list()
        for terminal in (None, SIZE):
            with pytest.raises(InvalidRequestError) as raised:
                await agent.processes.start(Command(argv=("no-such",)), terminal=terminal)
            assert raised.value.error_code == "program_not_found"
        assert await agent.processes.list() == before


async def test_an_account_without_processes_left_gets_none_and_the_others_live(
    tmp_path: Path,
) -> None:
    options = ("--user", "nobody") if os.getuid() == 0 else ()
    with fake_guest.running(tmp_path, *options) as guest:
        async with connected(guest) as agent:
            pid = await agent.processes.start(Command(argv=("cat",), cwd="/", stdin=True))
            ours = agent._link._writer.get_extra_info("socket")
            credentials = ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            (agent_pid,) = struct.unpack("i8x", credentials)
            # What a fork bomb leaves: the account may have no process more.
            resource.prlimit(agent_pid, resource.RLIMIT_NPROC, (0, 0))
            for terminal in (None, SIZE):
                with pytest.raises(TaskError) as raised:
                    await agent.processes.start(Command(argv=("true",), cwd="/"), terminal=terminal)
                assert raised.value.error_code == "guest_no_resources"
            await agent.processes.input(pid, pieces(b"still here"))
            await agent.processes.close_stdin(pid)
            assert text(await follow(agent, pid)) == b"still here"


async def test_too_many_at_once_are_refused_and_the_oldest_ends_are_forgotten(guest: Path) -> None:
    async with connected(guest) as agent:
        running = [each for each in await agent.processes.list() if each.ended is None]
        pids = [
            await agent.processes.start(Command(argv=("cat",), stdin=True))
            for _ in range(256 - len(running))
        ]
        with pytest.raises(TaskError) as raised:
            await agent.processes.start(Command(argv=("cat",)))
        assert raised.value.error_code == "guest_no_resources"
        for pid in pids:
            await agent.processes.signal(pid, signal.SIGKILL)
        await until(agent, pids[-1], lambda process: process.ended)
        listed = [each.pid for each in await agent.processes.list()]
    assert pids[-1] in listed
    assert pids[0] not in listed
    assert len(listed) <= 64 + len(running)


async def test_a_terminal_has_a_size_that_changes(guest: Path) -> None:
    what = Command(argv=(sys.executable, "-c", SHOWS_ITS_SIZE))
    size = TerminalSize(rows=33, cols=101)
    async with (
        connected(guest) as agent,
        agent.processes.begin(what, terminal=size) as attachment,
    ):
        said = await read_until(attachment, b"33\r\n")
        assert said == b"xterm-256color True True True True\r\n101 33\r\n"
        await attachment.resize(TerminalSize(rows=50, cols=132))
        assert await read_until(attachment, b"\r\n") == b"132 50\r\n"
        await agent.processes.resize(attachment.pid, SIZE)
        assert await read_until(attachment, b"\r\n") == b"80 24\r\n"
        assert (await look(agent, attachment.pid)).terminal == SIZE
        await attachment.kill()
        assert (await to_the_end(attachment))[-1] == Exited(exit_code=None, signal=9)


async def test_ctrl_c_is_typed_at_a_terminal(guest: Path) -> None:
    async with (
        connected(guest) as agent,
        agent.processes.begin(
            Command(argv=("/bin/bash", "--norc", "-i"), env={"PS1": "$ "}), terminal=SIZE
        ) as attachment,
    ):
        await read_until(attachment, b"$ ")
        await attachment.write_stdin(b"sh -c 'echo o\"\"n; exec sleep 1000'\r")
        await read_until(attachment, b"on\r\n")
        await attachment.write_stdin(b"\x03")
        await read_until(attachment, b"$ ")
        await attachment.write_stdin(b"echo still'' here; exit 5\r")
        await read_until(attachment, b"still here")
        await attachment.close_stdin()
        assert (await to_the_end(attachment))[-1] == Exited(exit_code=5)


async def test_a_program_at_a_terminal_ends_though_others_hold_the_terminal(guest: Path) -> None:
    async with connected(guest) as agent:
        what = shell("trap '' HUP; sleep 1000 & echo $!")
        async with agent.processes.begin(what, terminal=SIZE) as attachment:
            events = await to_the_end(attachment)
    assert events[-1] == Exited(exit_code=0)
    os.kill(int(text(events, Stream.PTY)), signal.SIGKILL)


async def test_a_terminal_that_others_write_to_for_ever_ends_when_it_is_killed(
    guest: Path,
) -> None:
    async with connected(guest) as agent:
        what = shell("trap '' HUP; set -m; yes & echo begun")
        # Nobody takes what they write, so there is always more of it.
        async with agent.processes.begin(what, terminal=SIZE) as slow:
            await until(agent, slow.pid, lambda process: process.output_bytes > (256 + 32) << 10)
            await gone(slow.pid)
            assert (await look(agent, slow.pid)).ended is None
            await agent.processes.signal(slow.pid, signal.SIGKILL)
            ended = await until(agent, slow.pid, lambda process: process.ended)
    assert ended.ended == Exited(exit_code=0)
