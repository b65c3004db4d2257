"""Interpreters that keep their state, in the real agent in a process of its own."""

from __future__ import annotations

import asyncio
import shutil
import signal
from typing import TYPE_CHECKING

import pytest

from tests import fake_guest
from tests.connected_agent import connected, output
from tests.context_runs import create, run, until_output, value
from vmpool.agent.contexts import Cell, ContextSpec, Language
from vmpool.errors import ConflictError, InvalidRequestError, NotFoundError, VmpoolError
from vmpool.model import Exited, Identity, Output, Raised, Result, Seed, Started, Unique

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from vmpool.model import Rng

# An agent that outlives a test forks spares when it likes.
pytestmark = pytest.mark.shares_host

FINE = Exited(exit_code=0)
HOLDS = "import time\nprint('begun', flush=True)\ntime.sleep(60)"
LIMIT, QUEUE = 32, 64


@pytest.fixture
def new_guest(tmp_path: Path) -> Iterator[Path]:
    """The socket of a guest that nobody has used."""
    with fake_guest.running(tmp_path) as path:
        yield path


@pytest.fixture(autouse=True)
async def _closed_contexts(guest: Path) -> AsyncIterator[None]:
    """Leave the guest that tests share as it was."""
    yield
    async with asyncio.timeout(60), connected(guest) as agent:
        for info in await agent.contexts.list():
            await agent.contexts.close(info.id)


async def test_state_stays_from_one_execution_to_the_next(guest: Path) -> None:
    async with connected(guest) as agent:
        context = await create(agent)
        first = await run(agent, context, "x = 41\ndef f(): return x + 1")
        second = await run(agent, context, "print('before')\nf()")
    assert isinstance(first[0], Started)
    assert (first[0].execution_count, first[1:]) == (1, [FINE])
    assert second == [
        Started(first[0].pid, 2),
        Output(stream=second[1].stream, data=b"before\n"),  # type: ignore[union-attr]
        Result({"text/plain": "42"}, is_main=True),
        FINE,
    ]


async def test_contexts_do_not_share_their_state(guest: Path) -> None:
    async with connected(guest) as agent:
        one, other = await create(agent), await create(agent)
        await run(agent, one, "x = 1")
        events = await run(agent, other, "x")
    assert isinstance(events[1], Raised)
    assert events[1].name == "NameError"


async def test_what_is_displayed_comes_when_it_is_shown_and_can_be_updated(guest: Path) -> None:
    source = """
from IPython.display import HTML, display
print("one")
shown = display(HTML("<b>1</b>"), display_id="mine")
print("two")
shown.update(HTML("<b>2</b>"))
"""
    async with connected(guest) as agent:
        events = await run(agent, await create(agent), source)
    told = [event.data if isinstance(event, Output) else event for event in events[1:-1]]
    shown = [event for event in told if isinstance(event, Result)]
    assert told == [b"one\n", shown[0], b"two\n", shown[1]]
    assert [result.mime["text/html"] for result in shown] == ["<b>1</b>", "<b>2</b>"]
    assert {(result.display_id, result.is_main) for result in shown} == {("mine", False)}


async def test_what_is_printed_and_what_is_shown_keep_their_order(guest: Path) -> None:
    source = "for i in range(30):\n    print(i)\n    display(i)\n    !echo $i"
    async with connected(guest) as agent:
        events = await run(agent, await create(agent), source)
    told = "".join(
        event.data.decode() if isinstance(event, Output) else f"<{event.mime['text/plain']}>"
        for event in events
        if isinstance(event, Output | Result)
    )
    assert told == "".join(f"{i}\n<{i}>{i}\n" for i in range(30))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("!echo hello", b"hello\n"),
        ("%%bash\necho hello", b"hello\n"),
        ("import asyncio\nawait asyncio.sleep(0)\nprint('hello')", b"hello\n"),
        ("    print('hello')", b"hello\n"),
        ("%cd /\nimport os; print(os.getcwd())", b"/\n/\n"),
        ("import subprocess; subprocess.call(['cat']); print('hello')", b"hello\n"),
        ("import os\nif os.fork() == 0: print('a child')\nelse: os.wait()", b"a child\n"),
    ],
)
async def test_python_is_what_a_notebook_is(guest: Path, source: str, expected: bytes) -> None:
    async with connected(guest) as agent:
        context = await create(agent)
        events = await run(agent, context, source)
        again = await value(agent, context, "6 * 7")
    assert (output(events), events[-1], again) == (expected, FINE, "42")


@pytest.mark.parametrize(
    ("source", "name", "trace"),
    [
        (
            "def f():\n    1 / 0\nf()",
            "ZeroDivisionError",
            'Traceback (most recent call last):\n  File "<cell 1>", line 3, in <module>\n    f()\n'
            '  File "<cell 1>", line 2, in f\n    1 / 0',
        ),
        ("x = (", "SyntaxError", '  File "<cell 1>", line 1\n'),
        ("input('name? ')", "EOFError", "\nEOFError: a context has no stdin"),
        ("raise ValueError('\\x1b[31m')", "ValueError", "ValueError: \x1b[31m"),
    ],
)
async def test_an_exception_is_told_as_python_prints_it(
    guest: Path, source: str, name: str, trace: str
) -> None:
    async with connected(guest) as agent:
        events = await run(agent, await create(agent), source)
    raised, exited = events[-2:]
    assert isinstance(raised, Raised)
    assert (raised.name, exited) == (name, Exited(exit_code=1))
    assert trace in raised.traceback
    assert "notebook.py" not in raised.traceback


@pytest.mark.parametrize(("source", "code"), [("exit()", 0), ("raise SystemExit(7)", 7)])
async def test_asking_for_the_end_ends_the_execution_alone(
    guest: Path, source: str, code: int
) -> None:
    async with connected(guest) as agent:
        context = await create(agent)
        await run(agent, context, "x = 1")
        events = await run(agent, context, source)
        after = await value(agent, context, "x")
    assert (events[1:], after) == ([Exited(exit_code=code)], "1")


async def test_variables_of_an_execution_hold_for_it_alone(guest: Path) -> None:
    source = "import os; [os.environ.get(name) for name in ('A', 'B', 'C')]"
    async with connected(guest) as agent:
        for language, show in (
            ("python", source),
            ("bash", "echo \"['$A', '${B-None}', '$C']\""),
        ):
            context = await create(agent, language, env={"A": "own"})
            told = [
                await run(agent, context, show, outer=outer, env=env)
                for outer, env in (
                    ({"A": "outer", "C": "1"}, {"B": "it's $x"}),
                    ({"A": "outer", "C": "2"}, {}),
                )
            ]
            shown = [
                event.data.decode() if isinstance(event, Output) else event.mime["text/plain"]
                for events in told
                for event in events
                if isinstance(event, Output | Result)
            ]
            assert [line.strip().replace('"', "'") for line in shown] == [
                "['own', 'it's $x', '1']",
                "['own', None, '2']" if language == "python" else "['own', 'None', '2']",
            ]


@pytest.mark.parametrize("source", [HOLDS, "print('begun')\n!sleep 60"])
async def test_an_interrupt_ends_what_runs_and_keeps_the_state(guest: Path, source: str) -> None:
    async with asyncio.timeout(60), connected(guest) as agent:
        context = await create(agent)
        await run(agent, context, "x = 1")
        cell = Cell(context=context, source=source)
        async with agent.contexts.run(cell, outer={}) as execution:
            await until_output(execution, b"begun")
            assert await agent.contexts.interrupt(context)
            rest = [event async for event in execution]
        assert [type(event) for event in rest[-2:]] == [Raised, Exited]
        assert rest[-1] == Exited(exit_code=1)
        assert await value(agent, context, "x") == "1"
        assert not await agent.contexts.interrupt(context)


async def test_an_execution_over_its_time_is_interrupted(guest: Path) -> None:
    async with connected(guest) as agent:
        context = await create(agent)
        await run(agent, context, "x = 1")
        events = await run(agent, context, HOLDS, timeout=0.2)
        assert events[-1] == Exited(exit_code=1, timed_out=True)
        assert await value(agent, context, "x") == "1"


async def test_one_that_will_not_be_interrupted_loses_its_context(guest: Path) -> None:
    stubborn = "import signal, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\ntime.sleep(60)"
    async with connected(guest) as agent:
        context = await create(agent)
        lost, waited = await asyncio.gather(
            run(agent, context, stubborn, timeout=2.0),
            run(agent, context, "1"),
            return_exceptions=True,
        )
        assert isinstance(lost, list)
        assert lost[-1] == Exited(exit_code=None, signal=9, timed_out=True, context_lost=True)
        assert isinstance(waited, ConflictError)
        assert waited.error_code == "context_lost"
        assert await value(agent, context, "'time' in dir()") == "False"


async def test_an_interpreter_that_ends_is_started_anew(guest: Path) -> None:
    async with connected(guest) as agent:
        for language, source in (("python", "import os; os._exit(3)"), ("bash", "exit 3")):
            context = await create(agent, language)
            events = await run(agent, context, source)
            again = await run(agent, context, "print(1)" if language == "python" else "echo 1")
            assert events[-1] == Exited(exit_code=3, context_lost=True)
            assert isinstance(again[0], Started)
            assert (again[0].execution_count, output(again)) == (1, b"1\n")


async def test_an_abandoned_execution_is_interrupted(guest: Path) -> None:
    async with asyncio.timeout(60), connected(guest) as agent:
        context = await create(agent)
        await run(agent, context, "x = 1")
        cell = Cell(context=context, source=HOLDS)
        async with agent.contexts.run(cell, outer={}) as execution:
            await until_output(execution, b"begun")
        assert await value(agent, context, "x") == "1"


async def test_a_host_that_is_lost_abandons_and_its_successor_finds_the_state(guest: Path) -> None:
    async with asyncio.timeout(60):
        async with connected(guest) as agent:
            context = await create(agent)
            await run(agent, context, "x = 1")
            running = agent.contexts.run(Cell(context=context, source=HOLDS), outer={})
            execution = await running.__aenter__()
            await until_output(execution, b"begun")
            agent._link._writer.transport.abort()
        await running.gen.aclose()
        async with connected(guest) as agent:
            assert context in [info.id for info in await agent.contexts.list()]
            assert await value(agent, context, "x") == "1"


async def test_executions_run_in_the_order_in_which_they_were_asked_for(guest: Path) -> None:
    async with connected(guest) as agent:
        context = await create(agent)
        await run(agent, context, "seen = []")
        async with asyncio.TaskGroup() as tasks:
            for number in range(8):
                tasks.create_task(run(agent, context, f"seen.append({number})"))
        assert await value(agent, context, "seen") == str(list(range(8)))


async def test_a_queue_has_an_end(new_guest: Path) -> None:
    async with asyncio.timeout(60), connected(new_guest) as agent:
        context = await create(agent, "bash")
        cell = Cell(context=context, source="echo begun; sleep 60")
        async with agent.contexts.run(cell, outer={}) as execution:
            await until_output(execution, b"begun")
            waiting = [asyncio.create_task(run(agent, context, ":")) for _ in range(QUEUE)]
            while (await agent.contexts.list())[0].waiting < QUEUE:
                pass
            with pytest.raises(ConflictError) as raised:
                await run(agent, context, ":")
            assert await agent.contexts.interrupt(context)
            await asyncio.gather(*waiting)
    assert raised.value.error_code == "context_busy"


async def test_a_default_context_is_made_once_however_many_ask(new_guest: Path) -> None:
    async with connected(new_guest) as agent:
        made_of = ContextSpec(language=Language.PYTHON)
        both = await asyncio.gather(
            *(run(agent, "python", "import os; os.getpid()", or_create=made_of) for _ in range(2))
        )
        listed = await agent.contexts.list()
        with pytest.raises(NotFoundError) as raised:
            await run(agent, "bash", ":")
    assert both[0][1] == both[1][1]
    assert [(info.id, info.executions) for info in listed] == [("python", 2)]
    assert raised.value.error_code == "context_not_found"


async def test_there_are_only_so_many_contexts(new_guest: Path) -> None:
    async with connected(new_guest) as agent:
        made = [await create(agent, "bash") for _ in range(LIMIT)]
        with pytest.raises(ConflictError) as raised:
            await create(agent, "bash")
        await agent.contexts.close(made[0])
        made[0] = await create(agent, "bash")
        assert sorted(info.id for info in await agent.contexts.list()) == sorted(made)
    assert raised.value.error_code == "too_many_contexts"


async def test_a_context_is_restarted_and_closed(guest: Path) -> None:
    async with connected(guest) as agent:
        context = await create(agent, cwd="/")
        await run(agent, context, "x = 1\n%cd /tmp")
        info = await agent.contexts.restart(context)
        after = await value(agent, context, "import os; os.getcwd(), 'x' in dir()")
        await agent.contexts.close(context)
        with pytest.raises(NotFoundError):
            await agent.contexts.close(context)
    assert (info.state, info.executions, info.cwd) == ("idle", 0, "/")
    assert after == "('/', False)"


async def test_closing_ends_what_runs_and_what_waits(guest: Path) -> None:
    async with asyncio.timeout(60), connected(guest) as agent:
        context = await create(agent)
        async with agent.contexts.run(Cell(context=context, source=HOLDS), outer={}) as execution:
            await until_output(execution, b"begun")
            waiting = asyncio.create_task(run(agent, context, "1"))
            while not next(c for c in await agent.contexts.list() if c.id == context).waiting:
                pass
            await agent.contexts.close(context)
            rest = [event async for event in execution]
        with pytest.raises(NotFoundError):
            await waiting
    assert rest == [Exited(exit_code=None, signal=signal.SIGKILL, context_lost=True)]


async def test_one_that_prints_for_ever_is_held_back_and_holds_up_nobody(guest: Path) -> None:
    async with asyncio.timeout(60), connected(guest) as agent:
        context, other = await create(agent), await create(agent)
        cell = Cell(context=context, source="while True: print('x' * 1000)")
        async with agent.contexts.run(cell, outer={}) as execution:
            await until_output(execution, b"xxx")
            for _ in range(20):
                assert await value(agent, other, "1") == "1"
        assert await value(agent, context, "2") == "2"


@pytest.mark.parametrize("language", ["python", "bash"])
async def test_what_is_left_running_is_neither_told_nor_held_back(
    guest: Path, tmp_path: Path, language: str
) -> None:
    done = tmp_path / "done"
    line = f"(head -c 4000000 /dev/zero; touch {done}) & echo at once"
    async with asyncio.timeout(60), connected(guest) as agent:
        context = await create(agent, language)
        if language == "python":
            line = f"import subprocess; subprocess.Popen({line!r}, shell=True); print('at once')"
        await run(agent, context, line)
        while not done.exists():
            await agent.contexts.list()
        assert b"\0" not in output(await run(agent, context, ""))


async def test_bash_keeps_variables_functions_and_directory(guest: Path) -> None:
    async with connected(guest) as agent:
        context = await create(agent, "bash")
        first = await run(agent, context, "a='x y'; f() { echo \"f $a\"; }; cd /; false")
        second = await run(agent, context, 'f; pwd; echo "$(cat; echo err >&2)"')
        third = await run(agent, context, "echo 'a\nb'; if (")
    assert first[1:] == [Exited(exit_code=1)]
    assert (output(second), output(second, "stderr")) == (b"f x y\n/\n\n", b"err\n")
    assert isinstance(third[-1], Exited)
    assert third[-1].exit_code
    assert not third[-1].context_lost


async def test_an_interrupt_ends_a_line_of_bash_and_not_bash(guest: Path) -> None:
    source = "x=1; for i in 1 2 3; do echo begun; sleep 60; done; echo never"
    async with asyncio.timeout(60), connected(guest) as agent:
        context = await create(agent, "bash")
        async with agent.contexts.run(Cell(context=context, source=source), outer={}) as execution:
            await until_output(execution, b"begun")
            assert await agent.contexts.interrupt(context)
            rest = [event async for event in execution]
        after = await run(agent, context, "echo $x")
    assert b"never" not in output(rest)
    assert (rest[-1], output(after)) == (Exited(exit_code=130), b"1\n")


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node here")
async def test_javascript_keeps_its_state_awaits_and_is_interrupted(guest: Path) -> None:
    async with asyncio.timeout(60), connected(guest) as agent:
        context = await create(agent, "javascript")
        await run(agent, context, "let a = 1; const wait = (x) => new Promise((r) => r(x))")
        assert await value(agent, context, "a += await wait(41); `ü ${a}`") == "'ü 42'"
        printed = await run(agent, context, "console.log('one'); a")
        assert output(printed) == b"one\n"
        imports = """import fs, { readFileSync as read } from 'node:fs'
            import * as path from "path"; import 'os'
            typeof fs.openSync + typeof read + path.join('a', 'b')"""
        assert await value(agent, context, imports) == "'functionfunctiona/b'"
        assert await value(agent, context, "typeof read") == "'function'"
        raised = await run(agent, context, "throw new TypeError('no')")
        assert isinstance(raised[-2], Raised)
        assert (raised[-2].name, raised[-2].value) == ("TypeError", "no")
        for endless in ("while (true) {}", "await new Promise(() => {})"):
            events = await run(agent, context, endless, timeout=0.1)
            assert events[-1] == Exited(exit_code=1, timed_out=True)
        assert await value(agent, context, "a") == "42"


@pytest.mark.parametrize(
    ("spec", "code"),
    [
        (ContextSpec(cwd="/nowhere"), "cwd_not_found"),
        (ContextSpec(language=Language.BASH, cwd="/nowhere"), "cwd_not_found"),
        (ContextSpec(user="nobody2"), "unknown_user"),
        (ContextSpec(language=Language.BASH, env={"A.B": "1"}), "bad_request"),
        (ContextSpec(env={"A=B": "1"}), "bad_request"),
    ],
)
async def test_what_cannot_be_made_says_why_and_leaves_nothing(
    guest: Path, spec: ContextSpec, code: str
) -> None:
    async with connected(guest) as agent:
        before = await agent.contexts.list()
        with pytest.raises(InvalidRequestError) as raised:
            await agent.contexts.create(spec, outer={})
        assert raised.value.error_code == code
        assert [info.id for info in await agent.contexts.list()] == [info.id for info in before]


async def test_a_context_that_has_not_come_up_can_be_closed(tmp_path: Path) -> None:
    warm_up, flag = tmp_path / "warm.py", tmp_path / "flag"
    warm_up.write_text(f"import os\nwhile not os.path.exists({str(flag)!r}): pass")
    with fake_guest.running(tmp_path, "--warm-up", str(warm_up)) as path:
        async with asyncio.timeout(60), connected(path) as agent:
            making = asyncio.create_task(create(agent))
            while not (listed := await agent.contexts.list()):
                pass
            assert listed[0].state == "starting"
            await agent.contexts.close(listed[0].id)
            with pytest.raises(NotFoundError):
                await making
            given_up = asyncio.create_task(create(agent))
            while not await agent.contexts.list():
                pass
            given_up.cancel()
            while await agent.contexts.list():
                pass
            flag.touch()
            assert await value(agent, await create(agent), "1") == "1"


async def test_an_image_without_ipython_says_so(tmp_path: Path) -> None:
    warm_up = tmp_path / "warm.py"
    warm_up.write_text("import sys; sys.modules['IPython'] = None")
    with fake_guest.running(tmp_path, "--warm-up", str(warm_up)) as path:
        async with connected(path) as agent:
            with pytest.raises(VmpoolError, match="the image has no IPython") as raised:
                await create(agent)
            assert raised.value.error_code == "language_unavailable"
            assert "build one" in raised.value.remedy
            assert await agent.contexts.list() == ()


async def test_a_shell_made_ready_before_the_snapshot_is_as_good_as_new(tmp_path: Path) -> None:
    warm_up = tmp_path / "warm.py"
    warm_up.write_text("from vmpool_agent import notebook; notebook.rehearse()")
    with fake_guest.running(tmp_path, "--warm-up", str(warm_up)) as path:
        async with connected(path) as agent:
            context = await create(agent)
            names = await value(agent, context, "[n for n in dir() if n[0] != '_']")
            first = await run(agent, context, "1 / 0")
    assert names == "['In', 'Out', 'exit', 'get_ipython', 'open', 'quit']"
    assert isinstance(first[1], Raised)
    assert '"<cell 2>", line 1' in first[1].traceback


async def test_a_clone_draws_other_numbers_in_a_context_that_was_there_before(
    new_guest: Path,
) -> None:
    draw = "import random; random.random()"
    async with connected(new_guest) as agent:
        python, bash = await create(agent), await create(agent, "bash")

        async def drawn(rng: Rng) -> tuple[str, bytes]:
            await agent.identify(Identity.fresh("h"), rng=rng, timeout=10)
            return await value(agent, python, draw), output(await run(agent, bash, "echo $RANDOM"))

        seeded, unique, again = [await drawn(rng) for rng in (Seed(7), Unique(), Seed(7))]
    assert seeded == again
    assert seeded[0] != unique[0]
    assert seeded[1] != unique[1]
