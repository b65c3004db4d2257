"""Both Python clients against a real server: one suite, with asyncio and without."""

from __future__ import annotations

import asyncio
import inspect
import io
import os
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest

import vmpool
from tests.blocking_twin import Twin
from vmpool.client import (
    asynchronous,
    blocking,
    blocking_files,
    checkpoints,
    contexts,
    execution,
    files,
    sandbox,
)
from vmpool.client.events import Exited, Output, Started
from vmpool.errors import (
    GuestFileError,
    InvalidRequestError,
    NotFoundError,
    TaskError,
    TaskTimeoutError,
    TooLargeError,
    UnauthorizedError,
)
from vmpool.model import Stream

if TYPE_CHECKING:
    from pathlib import Path

    from tests.api.conftest import Server

HELLO = ["bash", "-c", "echo hällo; echo oops >&2; exit 3"]

Connect = Callable[..., Any]


@pytest.fixture(params=["asynchronous", "blocking"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Make a client of either kind."""
    if request.param == "asynchronous":
        return vmpool.AsyncClient
    return lambda *words, **options: Twin(vmpool.Client(*words, **options))


@pytest.fixture
async def client(connect: Connect, server: Server) -> AsyncIterator[Any]:
    """A client of either kind of a server over a fake engine."""
    async with connect(server.url, token=server.token) as connected:
        yield connected


async def ended(pid: int) -> None:
    """Return when a process of this host has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, over.set)
    try:
        async with asyncio.timeout(20):
            await over.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)


async def test_a_run_tells_all_of_how_it_went(client: Any) -> None:
    result = await client.run(argv=HELLO)
    assert (result.stdout, result.stderr, result.exit_code) == ("hällo\n", "oops\n", 3)
    assert not result.ok
    assert result.signal is None
    assert result.timings_ms["total"] >= result.timings_ms["execute"] > 0
    assert result.identity.hostname
    assert result.sandbox_id
    with pytest.raises(TaskError, match=r"exit code 3: 'oops'"):
        result.check()


async def test_a_run_takes_files_and_input_and_returns_files(client: Any, tmp_path: Path) -> None:
    blob = bytes(range(256))
    paths = [str(tmp_path / name) for name in ("text", "blob", "out", "none")]
    result = await client.run(
        argv=["bash", "-c", f"cat {paths[0]} {paths[1]} - > {paths[2]}"],
        files={paths[0]: "é", paths[1]: blob},
        stdin=b"\xff",
        return_files=[paths[2], paths[3]],
    )
    assert result.check().files == {paths[2]: "é".encode() + blob + b"\xff"}
    assert type(result.missing[paths[3]]) is GuestFileError
    assert result.missing[paths[3]].error_code == "file_not_found"


async def test_code_shows_the_value_of_its_last_expression(client: Any) -> None:
    result = await client.run("print('a')\n6 * 7")
    assert (result.stdout, [display.text for display in result.displays]) == ("a\n", ["42"])
    result = await client.run("1 / 0")
    assert result.error.name == "ZeroDivisionError"
    with pytest.raises(TaskError, match="ZeroDivisionError: division by zero"):
        result.check()


async def test_time_that_is_up_is_an_error_of_its_own_when_checked(client: Any) -> None:
    result = await client.run(argv=["sleep", "1000"], timeout=0.2)
    assert result.timed_out
    with pytest.raises(TaskTimeoutError):
        result.check()


async def test_output_that_is_not_text_is_kept_as_it_was(client: Any) -> None:
    argv = ["bash", "-c", r"printf '\377\376'"]
    async with client.sandbox() as held:
        for result in (await client.run(argv=argv), await held.run(argv=argv)):
            assert result.stdout_bytes == b"\xff\xfe"
            assert result.stdout == "\ufffd\ufffd"


async def test_a_sandbox_is_killed_when_its_block_ends(client: Any, server: Server) -> None:
    async with client.sandbox(timeout=100, metadata={"a": "1"}, env={"B": "2"}) as held:
        assert held.created.access_token
        assert held.id in repr(held)
        info = await held.look()
        assert (info.state, info.metadata) == ("running", {"a": "1"})
        assert (await held.run(argv=["bash", "-c", "echo $B"])).stdout == "2\n"
        assert (await held.set_timeout(1000)).expires_at > info.expires_at
    assert server.host.sandboxes(owner=server.owner) == []
    with pytest.raises(NotFoundError) as gone:
        await held.look()
    assert gone.value.error_code == "sandbox_ended"


async def test_a_sandbox_is_killed_when_its_block_raises(client: Any, server: Server) -> None:
    with pytest.raises(LookupError):
        async with client.sandbox():
            raise LookupError
    assert server.host.sandboxes(owner=server.owner) == []


async def test_a_sandbox_that_is_detached_lives_on(client: Any) -> None:
    async with client.sandbox() as held:
        held.detach()
    again = client.attach(held.id)
    assert (await again.look()).state == "running"
    await again.kill()


async def test_killing_twice_is_killing_once(client: Any) -> None:
    held = await client.create()
    await held.kill()
    await held.kill()
    with pytest.raises(NotFoundError) as unknown:
        await client.attach("a" * 20).kill()
    assert unknown.value.error_code == "sandbox_not_found"


async def test_sandboxes_are_listed_by_metadata_over_all_pages(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [await client.create(metadata={"n": str(number), "a": "="}) for number in range(3)]
    monkeypatch.setattr(asynchronous, "PAGE", 2)
    listed = [info.id async for info in client.sandboxes()]
    assert listed == [one.id for one in reversed(made)]
    found = [info.id async for info in client.sandboxes({"n": "1", "a": "="})]
    assert found == [made[1].id]


async def test_events_come_while_the_program_runs(client: Any) -> None:
    async with (
        client.sandbox() as held,
        held.interact(argv=["bash", "-c", "echo one; read x; echo $x two; exit 4"]) as talk,
    ):
        events = aiter(talk)
        assert isinstance(await anext(events), Started)
        assert await anext(events) == Output(Stream.STDOUT, b"one\n")
        await talk.write("and\n")  # it waits for this: the first line was not kept until the end
        assert (await anext(events)).text == "and two\n"
        end = await anext(events)
        assert isinstance(end, Exited)
        assert end.exit_code == 4
        assert [event async for event in events] == []
        result = await talk.result()
    assert (result.stdout, result.exit_code) == ("one\nand two\n", 4)


async def test_an_execution_is_iterated_or_awaited(client: Any) -> None:
    async with client.sandbox() as held:
        async with held.exec(argv=HELLO) as running:
            written = {event.stream: event.text async for event in running
                       if isinstance(event, Output)}  # fmt: skip
        assert written == {Stream.STDOUT: "hällo\n", Stream.STDERR: "oops\n"}
        async with held.exec("6 * 7", stdin="x") as running:
            result = await running.result()
        assert result.displays[0].text == "42"
        assert (await held.run(argv=["cat"], stdin="input")).stdout == "input"


async def test_leaving_an_execution_kills_the_program(client: Any) -> None:
    async with client.sandbox() as held:
        for start in (held.exec, held.interact):
            async with start(argv=["sleep", "1000"]) as running:
                started = await anext(aiter(running))
            await ended(started.pid)


async def test_input_of_any_size_is_taken_and_its_end_is_told(client: Any) -> None:
    async with client.sandbox() as held, held.interact(argv=["wc", "-c"]) as talk:
        await talk.write(b"x" * 3_000_000)
        await talk.close_stdin()
        assert (await talk.result()).stdout.strip() == "3000000"


async def test_a_signal_reaches_the_program(client: Any) -> None:
    async with client.sandbox() as held, held.interact(argv=["sleep", "1000"]) as talk:
        await anext(aiter(talk))
        await talk.signal(15)
        assert (await talk.result()).signal == 15


async def test_what_cannot_start_is_an_error_however_it_is_started(client: Any) -> None:
    async with client.sandbox() as held:
        for start in (held.exec, held.interact):
            with pytest.raises(InvalidRequestError) as refused:
                async with start(argv=["/none"]) as running:
                    await running.result()
            assert refused.value.error_code == "program_not_found"


async def test_a_socket_that_is_refused_says_why(client: Any) -> None:
    held = await client.create()
    await held.kill()
    with pytest.raises(NotFoundError) as refused:
        async with held.interact(argv=["cat"]):
            pass
    assert refused.value.error_code == "sandbox_ended"


async def test_a_sandbox_that_ends_meanwhile_ends_its_executions(client: Any) -> None:
    async with client.sandbox() as held, held.exec(argv=["sleep", "1000"]) as running:
        events = aiter(running)
        await anext(events)
        await held.kill()
        with pytest.raises(NotFoundError) as broken:
            await anext(events)
        assert broken.value.error_code == "sandbox_ended"


async def test_files_are_written_read_moved_and_removed(client: Any, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    place = tmp_path / "guest"
    async with client.sandbox() as held:
        user = {"user": "root"} if os.geteuid() == 0 else {}
        info = await held.files.write(f"{place}/a b", content, mode=0o600, **user)
        assert (info.size_bytes, info.mode, info.kind) == (3_000_000, 0o600, "file")
        assert await held.files.read(f"{place}/a b", **user) == content
        await held.files.write(f"{place}/text", "é", **user)
        assert await held.files.read_text(f"{place}/text", **user) == "é"
        await held.files.make_directory(f"{place}/d/e", **user)
        await held.files.move(f"{place}/text", f"{place}/d/f", **user)
        listed = await held.files.list(str(place), depth=2, **user)
        assert [(one.path.removeprefix(str(place)), one.kind) for one in listed] == [
            ("/a b", "file"), ("/d", "directory"), ("/d/e", "directory"), ("/d/f", "file"),
        ]  # fmt: skip
        await held.files.remove(f"{place}/d", **user)
        with pytest.raises(GuestFileError) as missing:
            await held.files.stat(f"{place}/d", **user)
        assert missing.value.error_code == "file_not_found"


async def test_files_are_streamed_both_ways(client: Any, tmp_path: Path) -> None:
    content = os.urandom(1_000_000)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    user = {"user": "root"} if os.geteuid() == 0 else {}
    async with client.sandbox() as held:
        await held.files.upload(source, f"{tmp_path}/one", **user)
        await held.files.upload(io.BytesIO(content), f"{tmp_path}/two", **user)
        await held.files.download(f"{tmp_path}/one", target, **user)
        assert target.read_bytes() == content
        async with held.files.stream(f"{tmp_path}/two", **user) as chunks:
            assert b"".join([chunk async for chunk in chunks]) == content
        with pytest.raises(TooLargeError):
            await held.files.read(f"{tmp_path}/two", limit_bytes=999_999, **user)


async def test_a_download_that_fails_leaves_what_was_there(client: Any, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("kept")
    async with client.sandbox() as held:
        with pytest.raises(GuestFileError):
            await held.files.download("/none", target)
        with pytest.raises(InvalidRequestError) as unwritable:
            await held.files.download("/etc/hostname", tmp_path / "none/target")
        assert unwritable.value.error_code == "file_unwritable"
        with pytest.raises(InvalidRequestError) as unreadable:
            await held.files.upload(tmp_path / "none", "/tmp/x")
        assert unreadable.value.error_code == "file_unreadable"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert target.read_text() == "kept"


async def test_templates_are_made_shown_and_removed(client: Any) -> None:
    made = await client.create_template("small", "python", limits={"ready": 0, "total": 1})
    assert (made.state, made.limits.total) == ("ready", 1)
    assert [template.name for template in await client.templates()] == ["python", "small"]
    assert (await client.template("small")).image == "python"
    await client.remove_template("small")
    with pytest.raises(NotFoundError) as gone:
        await client.template("small")
    assert gone.value.error_code == "template_not_found"
    assert [image.name for image in await client.images()] == ["python"]
    assert (await client.health()).ok


async def test_an_error_has_the_class_the_code_and_the_remedy_of_the_servers(
    connect: Connect, client: Any, server: Server
) -> None:
    with pytest.raises(NotFoundError) as unknown:
        await client.create(template="none")
    assert unknown.value.error_code == "template_not_found"
    with pytest.raises(InvalidRequestError) as malformed:
        await client.run("1", argv=["true"])
    assert "exactly one" in malformed.value.message
    async with connect(server.url, token="wrong") as stranger:
        with pytest.raises(UnauthorizedError) as refused:
            await stranger.templates()
    assert refused.value.error_code == "token_invalid"
    assert "vmpool token create" in refused.value.remedy


async def test_a_client_that_is_closed_says_so(client: Any) -> None:
    await client.health()
    await client.close()
    await client.close()
    with pytest.raises(InvalidRequestError, match="closed"):
        await client.health()


async def test_a_context_keeps_its_state_and_shows_what_it_is_told_to(client: Any) -> None:
    async with client.sandbox() as box:
        context = await box.contexts.create(language="python", env={"A": "1"})
        await context.run("from IPython.display import HTML, display; x = 41")
        shown = await context.run(
            "d = display(HTML('<b>1</b>'), display_id=True); d.update(HTML('<b>2</b>'))\nx + 1"
        )
        assert [one.mime.get("text/html") for one in shown.displays] == ["<b>2</b>", None]
        assert (shown.value.text, shown.displays[0].is_main) == ("42", False)
        async with context.exec(
            "import os; print(os.environ['A'] + os.environ['B'])", env={"B": "2"}
        ) as run:
            events = [event async for event in run]
        assert events[0] == Started(events[0].pid, 3)
        assert events[1] == Output(Stream.STDOUT, b"12\n")
        lost = await context.run("os._exit(7)")
        assert (lost.exit_code, lost.context_lost, lost.ok) == (7, True, False)
        assert (await context.run("x")).error.name == "NameError"
        assert [one.id for one in await box.contexts.list()] == [context.id]
        assert (await context.restart()).executions == 0
        assert not await context.interrupt()
        await context.close()
        await context.close()
        with pytest.raises(NotFoundError, match="there is no context"):
            await context.run("1")


async def test_code_runs_in_a_languages_own_context(client: Any) -> None:
    async with client.sandbox() as box:
        await box.run_code("x = 1")
        assert (await box.run_code("x + 1")).value.text == "2"
        assert (await box.run_code("echo $((1 + 2))", language="bash")).stdout == "3\n"
        assert (await box.run_code("import time; time.sleep(60)", timeout=0.2)).timed_out
        assert (await box.run_code("x")).value.text == "1"


async def test_threads_share_a_blocking_client(server: Server) -> None:
    def square(number: int) -> str:
        return blocking_client.run(f"print({number} ** 2)").stdout

    with vmpool.Client(server.url, token=server.token) as blocking_client:
        told = await asyncio.gather(*(asyncio.to_thread(square, n) for n in range(4)))
    assert told == ["0\n", "1\n", "4\n", "9\n"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (asynchronous.AsyncClient, blocking.Client),
        (sandbox.AsyncSandbox, blocking.Sandbox),
        (checkpoints.AsyncCheckpoints, blocking.Checkpoints),
        (execution.AsyncExecution, blocking.Execution),
        (execution.AsyncInteraction, blocking.Interaction),
        (contexts.AsyncContexts, blocking.Contexts),
        (contexts.AsyncContext, blocking.Context),
        (files.AsyncFiles, blocking_files.Files),
    ],
)
def test_both_clients_offer_the_same(one: type, other: type) -> None:
    def offered(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(method).parameters)
            for name, method in inspect.getmembers(kind, inspect.isfunction)
            if not name.startswith("_") and name != "aclose"
        }

    assert offered(one) == offered(other)
