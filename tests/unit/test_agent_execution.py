"""Programs and source, run by the real agent in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import fake_guest
from tests.connected_agent import connected, output, run
from vmpool.agent import Agent
from vmpool.errors import ConflictError, InvalidRequestError
from vmpool.model import Code, Command, Exited, Output, Raised, Result, Started
from vmpool_agent import wire

if TYPE_CHECKING:
    from vmpool.agent import Execution

# An agent that outlives a test forks spares when it likes.
pytestmark = pytest.mark.shares_host


def shell(line: str, **options: object) -> Command:
    return Command(argv=("/bin/sh", "-c", line), **options)  # type: ignore[arg-type]


async def read_until(execution: Execution, text: bytes) -> bytes:
    seen = b""
    async for event in execution:
        if isinstance(event, Output):
            seen += event.data
        if text in seen:
            return seen
    raise AssertionError(f"{text!r} never came, but {seen!r}")


async def test_a_program_starts_writes_to_both_streams_and_exits(guest: Path) -> None:
    async with connected(guest) as agent:
        events = await run(agent, shell("echo out; echo err >&2; exit 3"))
    assert isinstance(events[0], Started)
    assert events[-1] == Exited(exit_code=3)
    assert (output(events), output(events, "stderr")) == (b"out\n", b"err\n")


async def test_a_message_that_means_nothing_ends_the_program(guest: Path) -> None:
    async with connected(guest) as agent, agent.execute(shell("sleep 1000")) as execution:
        leader = os.pidfd_open(execution.pid)
        await execution._channel.send_message({"op": "dance"})
        with pytest.raises(InvalidRequestError, match="dance"):
            [event async for event in execution]
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(leader, ended.set)
        try:
            await asyncio.wait_for(ended.wait(), 10)
        finally:
            asyncio.get_running_loop().remove_reader(leader)
            os.close(leader)


async def test_a_program_has_the_accounts_environment_and_home(guest: Path) -> None:
    home = guest.parent / "home"
    async with connected(guest) as agent:
        events = await run(agent, shell("pwd; env", env={"MORE": "1", "ODD": "\udcff"}))
    lines = output(events).splitlines()
    assert lines[0] == bytes(home)
    assert {b"USER=user", b"LOGNAME=user", b"HOME=" + bytes(home), b"MORE=1"} <= set(lines)
    assert b"ODD=\xff" in lines
    assert not [line for line in lines if line.startswith((b"VMPOOL_TEST_RUN", b"VIRTUAL_ENV"))]


@pytest.mark.parametrize(
    ("what", "code", "text"),
    [
        (Command(argv=("no-such-program",)), "program_not_found", "no-such-program"),
        (Command(argv=("/etc/passwd",)), "permission_denied", "/etc/passwd"),
        (Command(argv=("ls",), cwd="/nowhere"), "cwd_not_found", "cwd '/nowhere' does not exist"),
        (Command(argv=("ls",), user="nobody2"), "unknown_user", "invalid username: 'nobody2'"),
        (Command(argv=("a\0b",)), "bad_request", "argv"),
        (Command(argv=("\ud800",)), "bad_request", "argv"),
        (Command(argv=("true", "x" * 200_000)), "argument_list_too_long", "too long"),
        (Command(argv=("ls",), env={"A=B": "1"}), "bad_request", "env"),
        (Code(source="1", cwd="/nowhere"), "cwd_not_found", "cwd '/nowhere' does not exist"),
        (Code(source="1", user="x"), "unknown_user", "invalid username: 'x'"),
    ],
)
async def test_what_cannot_be_started_says_why(
    guest: Path, what: Command | Code, code: str, text: str
) -> None:
    async with connected(guest) as agent:
        with pytest.raises(InvalidRequestError, match=text) as raised:
            await run(agent, what)
    assert raised.value.error_code == code


async def test_megabytes_of_stdin_come_back(guest: Path) -> None:
    data = os.urandom(4 << 20)
    async with (
        connected(guest) as agent,
        agent.execute(Command(argv=("cat",), stdin=True)) as execution,
    ):

        async def feed() -> None:
            await execution.write_stdin(data)
            await execution.close_stdin()

        async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
            tasks.create_task(feed())
            events = [event async for event in execution]
    assert output(events) == data
    assert events[-1] == Exited(exit_code=0)


async def test_without_a_pipe_stdin_is_empty_and_takes_nothing(guest: Path) -> None:
    async with connected(guest) as agent, agent.execute(Command(argv=("cat",))) as execution:
        with pytest.raises(ConflictError):
            await execution.write_stdin(b"x")
        assert [e async for e in execution][-1] == Exited(exit_code=0)


async def test_input_for_a_program_that_closed_its_stdin_is_discarded(guest: Path) -> None:
    async with (
        connected(guest) as agent,
        agent.execute(shell("exec 0<&-; echo closed; sleep 1000", stdin=True)) as execution,
    ):
        await read_until(execution, b"closed")
        async with asyncio.timeout(10):
            await execution.write_stdin(bytes(2 << 20))
        await execution.kill()
        assert [e async for e in execution][-1] == Exited(exit_code=None, signal=signal.SIGKILL)


async def test_a_flood_on_one_channel_blocks_no_other_and_fills_no_memory(guest: Path) -> None:
    async with connected(guest) as agent, agent.execute(Command(argv=("yes",))) as flood:
        first = await anext(aiter(flood))
        assert isinstance(first, Started)
        for _ in range(5):
            assert output(await run(agent, shell("echo answer"))) == b"answer\n"
        async with asyncio.timeout(30):
            while not (held := _held_bytes(flood)):  # noqa: ASYNC110 - a busy machine runs it late
                await asyncio.sleep(0.001)
        assert held < 256 * 1024


def _held_bytes(execution: Execution) -> int:
    return sum(len(e.payload) for e in execution._channel._events if isinstance(e, wire.Data))


async def test_a_timeout_kills_grandchildren_and_ends_promptly(guest: Path) -> None:
    line = "sleep 1000 & (setsid sleep 1000 & echo $!); echo $!; wait"
    async with connected(guest) as agent:
        events = await run(agent, shell(line, timeout=2.0))
        exited = events[-1]
        assert isinstance(exited, Exited)
        assert (exited.signal, exited.timed_out) == (signal.SIGKILL, True)
        _, child = (int(word) for word in output(events).split())
        await gone(agent, child)
        await run(agent, shell("pkill -f 'sleep 100[0]' ; true"))


async def test_leaving_the_block_kills_the_group(guest: Path) -> None:
    async with connected(guest) as agent:
        async with agent.execute(shell("sleep 1001 & echo $!; wait")) as execution:
            child = int(await read_until(execution, b"\n"))
        await gone(agent, child)


async def test_losing_the_link_kills_the_group(guest: Path) -> None:
    line = "sleep 1002 & echo $!; wait"
    async with connected(guest) as agent, agent.execute(shell(line)) as execution:
        child = int(await read_until(execution, b"\n"))
        await agent.close()
    async with connected(guest) as agent:
        await gone(agent, child)


async def gone(agent: Agent, pid: int) -> None:
    line = f"while kill -0 {pid} 2>/dev/null; do :; done; echo gone"
    assert output(await run(agent, shell(line, timeout=10))) == b"gone\n"


async def test_a_killed_process_is_reaped_before_its_end_is_told(guest: Path) -> None:
    async with connected(guest) as agent:
        async with agent.execute(Command(argv=("sleep", "1003"))) as execution:
            await execution.kill()
            events = [event async for event in execution]
        assert events[-1] == Exited(exit_code=None, signal=signal.SIGKILL)
        check = await run(agent, shell(f"kill -0 {execution.pid} 2>&1"))
        assert check[-1] == Exited(exit_code=1)


async def test_a_signal_that_the_program_handles_is_not_its_end(guest: Path) -> None:
    line = "trap 'echo got; exit 7' TERM; echo ready; while :; do sleep 0.01; done"
    async with connected(guest) as agent, agent.execute(shell(line)) as execution:
        await read_until(execution, b"ready\n")
        await execution.kill(signal.SIGTERM)
        events = [event async for event in execution]
    assert output(events) == b"got\n"
    assert events[-1] == Exited(exit_code=7)


async def test_output_is_complete_before_the_end(guest: Path) -> None:
    async with connected(guest) as agent:
        events = await run(agent, shell("(sleep 0.2; echo late) & echo early"))
    assert output(events) == b"early\nlate\n"


async def test_a_program_holds_nothing_of_the_agents(guest: Path) -> None:
    async with connected(guest) as agent, agent.execute(Command(argv=("yes",))):
        events = await run(agent, Command(argv=("ls", "/proc/self/fd")))
        source = "import os; print(sorted(map(int, os.listdir('/proc/self/fd'))))"
        forked = await run(agent, Code(source=source))
    assert output(events).split() == [b"0", b"1", b"2", b"3"]  # 3 is the listing's own
    assert output(forked) == b"[0, 1, 2, 3, 4]\n"  # 3 takes reports, 4 is the listing's own


async def test_a_program_starts_with_default_signals_and_a_session_of_its_own(guest: Path) -> None:
    line = "grep -E 'Sig(Ign|Blk)' /proc/self/status; ps -o sid= -p $$; echo $$"
    async with connected(guest) as agent:
        events = await run(agent, shell(line))
    *masks, session, pid = output(events).split()
    libc_own = 0b11 << 31  # 32 and 33, which the C library lets nobody set; whoever starts us may
    assert [int(mask, 16) & ~libc_own for mask in masks[1::2]] == [0, 0]
    assert session == pid


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another account")
async def test_neither_programs_nor_source_keep_roots_capabilities(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("unprivileged")
    with fake_guest.running(directory, "--user", "nobody", "--home", "/tmp") as path:
        async with connected(path) as agent:
            line = "id -u; grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status"
            source = f"import subprocess, os; os.system({line!r})"
            for what in (shell(line), Code(source=source)):
                uid, *sets = output(await run(agent, what)).split()
                assert uid == b"65534"
                assert sets[1::2] == [b"0" * 16] * 4


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another account")
async def test_a_program_has_its_accounts_ids_for_good_and_the_agent_its_own(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("unprivileged")
    own = "grep -E 'Uid|Gid' /proc/self/status; ulimit -Sn; umask; pwd"
    with fake_guest.running(directory, "--user", "nobody", "--home", "/tmp") as path:
        async with connected(path) as agent:
            said = output(await run(agent, shell(own))).split()
            for refused in (Command(argv=("no-such-program",)), shell("true", cwd="/no/such")):
                with pytest.raises(InvalidRequestError):
                    await run(agent, refused)
            told = output(await run(agent, shell("echo $PPID; id -u", user="root"))).split()
            # Only now: while a program starts, the agent is who it will be.
            about = Path("/proc", told[0].decode())
            ids = [
                line.split()[1:]
                for line in (about / "status").read_text().splitlines()
                if line.startswith(("Uid", "Gid"))
            ]
            place = (about / "cwd").readlink()
    assert [*said[1:5], *said[6:10]] == [b"65534"] * 8
    assert said[10:] == [b"1024", b"0022", b"/tmp"]
    assert (ids, told[1], place) == ([["0"] * 4] * 2, b"0", Path("/"))


async def test_source_prints_and_shows_its_last_value(guest: Path) -> None:
    async with connected(guest) as agent:
        events = await run(agent, Code(source="x = 6\nprint(x)\nx * 7"))
    assert events[1:] == [
        Output(events[1].stream, b"6\n"),  # type: ignore[union-attr]
        Result({"text/plain": "42"}, is_main=True),
        Exited(exit_code=0),
    ]


async def test_an_exception_is_told_with_the_users_frames_only(guest: Path) -> None:
    async with connected(guest) as agent:
        events = await run(agent, Code(source="def f():\n    return 1 / 0\nf()"))
    raised = events[1]
    assert isinstance(raised, Raised)
    assert (raised.name, raised.value) == ("ZeroDivisionError", "division by zero")
    assert raised.traceback.count('File "') == 2
    assert "return 1 / 0" in raised.traceback
    assert events[-1] == Exited(exit_code=1)


@pytest.mark.parametrize(
    ("source", "code"),
    [("raise SystemExit(5)", 5), ("import sys; sys.exit()", 0), ("exit('bye')", 1), ("(", 1)],
)
async def test_source_ends_with_the_code_that_python_would_give(
    guest: Path, source: str, code: int
) -> None:
    async with connected(guest) as agent:
        events = await run(agent, Code(source=source))
    assert events[-1] == Exited(exit_code=code)


async def test_a_fork_that_runs_to_the_end_of_the_source_is_not_its_end(guest: Path) -> None:
    source = "import os\nif os.fork():\n    os.wait()\n    print('last')\n    raise SystemExit(5)"
    async with connected(guest) as agent:
        events = await run(agent, Code(source=source))
    assert (output(events), events[-1]) == (b"last\n", Exited(exit_code=5))


async def test_source_that_only_says_that_it_has_ended_has_not(guest: Path) -> None:
    lie = 'import os, time\nos.write(3, b\'{"type":"ended","exit_code":0}\\n\')\n'
    source = f"{lie}time.sleep(0.2)\nprint('late')"
    async with connected(guest) as agent:
        events = await run(agent, Code(source=source))
    assert output(events) == b"late\n"


async def test_rich_forms_come_beside_the_plain_one(guest: Path) -> None:
    source = """
class Rich:
    def _repr_html_(self): return "<b>hi</b>"
    def _repr_png_(self): return b"png"
    def _repr_svg_(self): raise ValueError
    def _repr_mimebundle_(self, **_): return {"x/y": {"a": 1}}, {}
    def __repr__(self): return "plain"
Rich()
"""
    async with connected(guest) as agent:
        events = await run(agent, Code(source=source))
    assert events[1] == Result(
        {"x/y": '{"a": 1}', "text/html": "<b>hi</b>", "image/png": "cG5n", "text/plain": "plain"},
        is_main=True,
    )


async def test_a_large_result_arrives_and_an_oversized_one_is_cut_to_its_text(guest: Path) -> None:
    source = "class R:\n def _repr_html_(s): return 'x' * {}\nR()"
    async with connected(guest) as agent:
        large = await run(agent, Code(source=source.format(900_000)))
        oversized = await run(agent, Code(source=source.format(9 << 20)))
    assert isinstance(large[1], Result)
    assert len(large[1].mime["text/html"]) == 900_000
    assert isinstance(oversized[1], Result)
    assert set(oversized[1].mime) == {"text/plain"}
    assert oversized[1].mime["text/plain"].endswith("[richer forms left out: too large]")


async def test_a_report_too_large_for_a_message_is_named_and_not_the_end(guest: Path) -> None:
    # 1e15 is read and written again as a longer number, by which the limit is passed.
    line = b'{"type":"result","mime":{},"x":[%s1]}\n'
    source = f"import os\nos.write(3, {line!r} % (b'1e15,' * 100_000)); print(1)"
    async with connected(guest) as agent:
        events = await run(agent, Code(source=source))
    shown = next(event for event in events if isinstance(event, Result))
    assert "left out" in shown.mime["text/plain"]
    assert output(events) == b"1\n"


async def test_an_exception_with_all_its_text_fits_a_message(guest: Path) -> None:
    source = "raise ValueError('\\U0001f600' * 500_000)"
    async with connected(guest) as agent:
        events = await run(agent, Code(source=source))
    assert any(isinstance(event, Raised) for event in events)


async def test_a_template_leaves_no_host_name_behind(tmp_path: Path) -> None:
    warm_up = tmp_path / "warm.py"
    warm_up.write_text("import platform\nplatform.node()\nplatform._uname_cache = 'template'\n")
    with fake_guest.running(tmp_path, "--warm-up", str(warm_up)) as path:
        async with connected(path) as agent:
            events = await run(agent, Code(source="import platform; print(platform.node())"))
    assert output(events).decode().strip() == os.uname().nodename


async def test_two_runs_share_no_state_and_no_random_numbers(guest: Path) -> None:
    source = "import random\nprint(random.random(), 'x' in globals())\nx = 1"
    async with connected(guest) as agent:
        drawn = {output(await run(agent, Code(source=source))) for _ in range(4)}
    assert len(drawn) == 4
    assert all(line.endswith(b"False\n") for line in drawn)


async def test_every_generator_is_seeded_anew_before_source_runs(tmp_path: Path) -> None:
    """A fork that waited in a snapshot holds the same state in all clones until it is seeded."""
    script = tmp_path / "warm.py"
    script.write_text(ALIKE)
    with fake_guest.running(tmp_path, "--warm-up", str(script)) as path:
        async with connected(path) as agent:
            drawn = []
            for _ in range(3):
                await agent.stock(timeout=10)  # forks that have rehearsed
                drawn.append(output(await run(agent, Code(source=DRAW))).split())
    for what in range(3):  # a number, a name, a key
        assert len({of_one[what] for of_one in drawn}) == 3
    assert [added for _, _, _, *added in drawn] == [[b"openssl", b"uuid"]] * 3


DRAW = """
import random, tempfile
from multiprocessing import process
names = tempfile._get_candidate_names()
print(random.random(), next(names), process.current_process().authkey.hex(), *seeded)
"""

ALIKE = """
import builtins, os, random, ssl, tempfile, uuid
from multiprocessing import process
from vmpool_agent import generators
builtins.seeded = []
ssl.RAND_add = lambda material, entropy: seeded.append("openssl") if any(material) else None
honest = generators.reseed
def reseed(*told):
    honest(*told)
    if uuid._node is None:
        seeded.append("uuid")
    if not rehearsed:  # what it leaves is in the snapshot, the same in all clones
        rehearsed.append(True)
        seeded.clear()
        random.seed(1)
        uuid._node = 1
        names = tempfile._get_candidate_names()
        names._rng, names._rng_pid = random.Random(1), os.getpid()
        process.current_process().authkey = b"the same"
rehearsed = []
generators.reseed = reseed
"""


async def test_source_sees_of_its_process_what_a_program_would(guest: Path) -> None:
    async with connected(guest) as agent:
        program = await run(agent, Command(argv=("python3", "-c", LOOK_AT_ME)))
        source = await run(agent, Code(source=LOOK_AT_ME))
    assert output(source) == output(program)


LOOK_AT_ME = """
import os, resource, signal
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print({name: status[name] for name in ("SigBlk", "SigPnd", "Uid", "Gid", "Groups", "Umask")})
print(sorted((n, h) for n in signal.valid_signals() if (h := signal.getsignal(n)) is signal.SIG_IGN
    and n not in (signal.SIGPIPE, signal.SIGXFSZ)))  # which any Python ignores, and ours does not
print(open("/proc/self/oom_score_adj").read(), os.getcwd(), os.getsid(0) == os.getpgid(0))
print(resource.getrlimit(resource.RLIMIT_NOFILE))
print(sorted(set(os.environ) - {"MPLBACKEND", "LC_CTYPE"}))
print(os.getsid(0) == os.getpid())
"""


async def test_source_larger_than_a_window_runs(guest: Path) -> None:
    source = f"x = {'y' * (2 << 20)!r}\nlen(x)"
    async with connected(guest) as agent:
        events = await run(agent, Code(source=source))
    assert events[1] == Result({"text/plain": str(2 << 20)}, is_main=True)


async def test_many_programs_run_at_once(guest: Path) -> None:
    async with connected(guest) as agent, asyncio.TaskGroup() as tasks:
        runs = [tasks.create_task(run(agent, shell(f"echo {n}"))) for n in range(40)]
    assert [output(task.result()) for task in runs] == [b"%d\n" % n for n in range(40)]
