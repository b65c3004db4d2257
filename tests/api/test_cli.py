"""Real command lines against a real server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from vmpool import local

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from tests.api.conftest import Serve, Server

VMPOOL = Path(sys.executable).with_name("vmpool")


@dataclass(frozen=True)
class Ended:
    """A command line that has ended."""

    code: int
    stdout: bytes
    stderr: str


class Terminal:
    """Starts command lines that know a server by their environment."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment

    async def start(self, *argv: str | Path) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            VMPOOL,
            *argv,
            env=os.environ | self.environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    def starting(
        self, *argv: str | Path
    ) -> AbstractAsyncContextManager[asyncio.subprocess.Process]:
        @contextlib.asynccontextmanager
        async def started() -> AsyncIterator[asyncio.subprocess.Process]:
            process = await self.start(*argv)
            try:
                async with asyncio.timeout(60):
                    yield process
            finally:
                if process.returncode is None:
                    process.kill()
                await process.communicate()

        return started()

    async def run(self, *argv: str | Path, stdin: bytes = b"") -> Ended:
        async with self.starting(*argv) as process:
            stdout, stderr = await process.communicate(stdin)
        assert process.returncode is not None
        return Ended(process.returncode, stdout, stderr.decode())

    async def succeed(self, *argv: str | Path, stdin: bytes = b"") -> bytes:
        ended = await self.run(*argv, stdin=stdin)
        assert (ended.code, ended.stderr) == (0, "")
        return ended.stdout


@pytest.fixture
def terminal(server: Server, tmp_path: Path) -> Terminal:
    return Terminal(
        {
            "VMPOOL_SERVER": server.url,
            "VMPOOL_TOKEN": server.token,
            "VMPOOL_STATE": os.fspath(tmp_path / "state"),
        }
    )


@pytest.fixture
async def sandbox(terminal: Terminal) -> str:
    return (await terminal.succeed("sandbox", "create")).decode().strip()


async def test_a_program_runs_and_its_streams_and_exit_code_are_passed_on(
    terminal: Terminal,
) -> None:
    ended = await terminal.run(
        "run", "--", "bash", "-c", r"printf 'out\xff\n'; echo err >&2; exit 7"
    )
    assert (ended.code, ended.stdout, ended.stderr) == (7, b"out\xff\n", "err\n")


async def test_code_shows_the_value_of_its_last_expression_and_its_exception(
    terminal: Terminal,
) -> None:
    assert await terminal.succeed("run", "--code", "print('a'); 6 * 7") == b"a\n42\n"
    raised = await terminal.run("run", "--code", "1 / 0")
    assert raised.code == 1
    assert raised.stderr.endswith("ZeroDivisionError: division by zero\n")


async def test_a_source_comes_from_a_file_and_from_stdin(
    terminal: Terminal, tmp_path: Path
) -> None:
    source = tmp_path / "source.sh"
    source.write_text("echo $((6 * 7))")
    assert await terminal.succeed("run", "--language", "bash", "--code-file", source) == b"42\n"
    by_stdin = await terminal.succeed("run", "--code-file", "-", stdin=b"print('\xc3\xa9')")
    assert by_stdin == "é\n".encode()


async def test_files_stdin_environment_and_directory_go_in_and_files_come_back(
    terminal: Terminal, tmp_path: Path
) -> None:
    sent, kept = tmp_path / "sent", tmp_path / "kept"
    guest = tmp_path / "guest"
    guest.mkdir()
    sent.write_bytes(b"\x00\xff")
    script = 'cat in > out; cat >> out; echo "$A $B $PWD" >> out'
    terminal.environment["B"] = "two"
    await terminal.succeed(
        "run", "-f", f"{sent}:{guest}/in", "-r", f"{guest}/out:{kept}", "-w", guest,
        "-e", "A=one", "-e", "B", "-i", "--", "bash", "-c", script, stdin=b"\xfe\n",
    )  # fmt: skip
    assert kept.read_bytes() == b"\x00\xff\xfe\n" + f"one two {guest}\n".encode()


async def test_a_file_that_does_not_come_back_is_named_and_the_run_is_no_success(
    terminal: Terminal, tmp_path: Path
) -> None:
    ended = await terminal.run("run", "-r", f"{tmp_path}/none:{tmp_path}/kept", "--", "true")
    assert ended.code == 125
    assert f"vmpool: no {tmp_path}/none: " in ended.stderr
    assert "[file_not_found]" in ended.stderr
    assert not (tmp_path / "kept").exists()


async def test_time_that_is_up_and_signals_have_exit_codes_of_their_own(
    terminal: Terminal,
) -> None:
    late = await terminal.run("run", "--timeout", "0.2", "--", "sleep", "60")
    assert (late.code, late.stderr) == (124, "vmpool: its time was up; it was killed\n")
    killed = await terminal.run("run", "--", "bash", "-c", "kill -TERM $$")
    assert (killed.code, killed.stderr) == (143, "vmpool: it was killed by signal 15\n")


async def test_the_whole_answer_is_there_as_json_and_timings_on_stderr(terminal: Terminal) -> None:
    ended = await terminal.run("run", "--json", "--timings", "--", "echo", "1")
    answer = json.loads(ended.stdout)
    assert (answer["stdout"], answer["exit_code"]) == ("1\n", 0)
    assert ended.stderr.startswith("vmpool: acquire ")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("run", "-t", "nope", "--", "true"), "[template_not_found]\n"),
        (("run", "--timeout", "1e9", "--", "true"), "[invalid_timeout]\n"),
        (("run", "-f", "/no/such/file", "--", "true"), "No such file or directory [file_unread"),
        (("exec", "nope", "--", "true"), "[sandbox_not_found]\n"),
        (("exec", "-i", "nope", "--", "true"), "[sandbox_not_found]\n"),
    ],
)
async def test_what_was_not_run_has_an_exit_code_of_its_own(
    terminal: Terminal, argv: tuple[str, ...], said: str
) -> None:
    ended = await terminal.run(*argv)
    assert (ended.code, ended.stdout) == (125, b"")
    assert ended.stderr.startswith("error: ")
    assert said in ended.stderr


@pytest.mark.parametrize("token", ["", "wrong"])
async def test_without_a_good_token_it_is_said_where_to_get_one(
    terminal: Terminal, token: str
) -> None:
    terminal.environment["VMPOOL_TOKEN"] = token
    for argv, code in ((("run", "--", "true"), 125), (("sandbox", "list"), 1)):
        ended = await terminal.run(*argv)
        assert ended.code == code
        assert "[token_" in ended.stderr
        assert "vmpool token create" in ended.stderr


async def test_a_server_of_this_host_is_found_with_its_token(
    terminal: Terminal, server: Server, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    local.write_token(state, server.token)
    del terminal.environment["VMPOOL_TOKEN"], terminal.environment["VMPOOL_SERVER"]
    with local.announced(state, server.url):
        assert await terminal.succeed("run", "--", "echo", "1") == b"1\n"


async def test_output_comes_while_the_program_runs(terminal: Terminal, sandbox: str) -> None:
    async with terminal.starting(
        "exec", "-i", sandbox, "--", "bash", "-c", "echo first; read line; echo $line >&2; exit 3"
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert await process.stdout.readline() == b"first\n"
        process.stdin.write(b"second\n")
        assert await process.stderr.readline() == b"second\n"
        assert await process.wait() == 3


async def test_stdin_of_any_bytes_goes_through_to_its_end(terminal: Terminal, sandbox: str) -> None:
    content = bytes(range(256)) * 4096
    assert await terminal.succeed("exec", "-i", sandbox, "--", "cat", stdin=content) == content


async def test_without_stdin_output_streams_too(
    terminal: Terminal, sandbox: str, tmp_path: Path
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with terminal.starting(
        "exec", sandbox, "--", "bash", "-c", f"echo first; read line < {fifo}; echo $line"
    ) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"first\n"
        await asyncio.to_thread(fifo.write_text, "second\n")
        assert await process.stdout.readline() == b"second\n"
        assert await process.wait() == 0


async def test_the_first_interrupt_is_the_programs(terminal: Terminal, sandbox: str) -> None:
    script = "trap 'echo trapped; exit 5' INT; echo ready; while :; do read -t 1 || :; done"
    async with terminal.starting("exec", "-i", sandbox, "--", "bash", "-c", script) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGINT)
        assert await process.stdout.readline() == b"trapped\n"
        assert await process.wait() == 5


@pytest.mark.parametrize(("options", "interrupts"), [((), 1), (("-i",), 2)])
async def test_leaving_ends_the_program(
    terminal: Terminal, sandbox: str, tmp_path: Path, options: tuple[str, ...], interrupts: int
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    script = f"trap 'echo deaf' INT; exec 9<> {fifo}; echo ready; while :; do read -t 1 || :; done"
    async with terminal.starting("exec", *options, sandbox, "--", "bash", "-c", script) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        writer = os.open(fifo, os.O_WRONLY)
        for _ in range(interrupts - 1):
            process.send_signal(signal.SIGINT)
            assert await process.stdout.readline() == b"deaf\n"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
        await _no_reader_left(writer)


async def _no_reader_left(writer: int) -> None:
    """Return when nobody has the reading end of a FIFO open any more; close ours."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(writer, over.set)  # POLLERR is the last reader's end
    try:
        async with asyncio.timeout(20):
            await over.wait()
    finally:
        loop.remove_reader(writer)
        os.close(writer)


async def test_events_are_lines_of_json(terminal: Terminal, sandbox: str) -> None:
    ended = await terminal.run("exec", "--json", sandbox, "--", "bash", "-c", "echo 1; exit 4")
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [event["type"] for event in events] == ["started", "stdout", "exit"]
    assert ended.code == 4


async def test_a_sandbox_that_is_killed_under_a_program_is_an_error(
    terminal: Terminal, sandbox: str
) -> None:
    async with terminal.starting("exec", sandbox, "--", "bash", "-c", "echo up; sleep 60") as one:
        assert one.stdout is not None
        assert await one.stdout.readline() == b"up\n"
        await terminal.succeed("sandbox", "kill", sandbox)
        _, stderr = await one.communicate()
    assert one.returncode == 125
    assert b"[sandbox_ended]" in stderr


async def test_a_sandboxs_life_from_creation_to_end(terminal: Terminal) -> None:
    options = ("-t", "python", "--timeout", "100", "-e", "A=b", "-m", "job=7", "--json")
    created = json.loads(await terminal.succeed("sandbox", "create", *options))
    sandbox = created["id"]
    other = (await terminal.succeed("sandbox", "create")).decode().strip()
    listed = (await terminal.succeed("sandbox", "list", "-m", "job=7")).decode()
    assert sandbox in listed
    assert other not in listed
    assert len(json.loads(await terminal.succeed("sandbox", "list", "--json"))) == 2
    assert await terminal.succeed("exec", sandbox, "--", "bash", "-c", "echo $A") == b"b\n"
    shown = (await terminal.succeed("sandbox", "show", sandbox)).decode()
    assert f"hostname        {created['identity']['hostname']}\n" in shown
    assert "metadata job    7\n" in shown
    assert (await terminal.succeed("sandbox", "timeout", sandbox, "500")).startswith(b"expires ")
    assert await terminal.succeed("sandbox", "kill", sandbox, other) == b""
    assert json.loads(await terminal.succeed("sandbox", "list", "--json")) == []
    gone = await terminal.run("sandbox", "show", sandbox)
    assert gone.code == 1
    assert "[sandbox_ended]" in gone.stderr


async def test_files_go_up_and_come_down_byte_for_byte(
    terminal: Terminal, sandbox: str, tmp_path: Path
) -> None:
    content = os.urandom(3 << 20)
    source, guest = tmp_path / "source", tmp_path / "guest"
    source.write_bytes(content)
    await terminal.succeed("sandbox", "upload", sandbox, source, f"{guest}/", "--mode", "640")
    listed = (await terminal.succeed("sandbox", "ls", sandbox, guest)).decode()
    assert "-rw-r-----" in listed
    assert listed.rstrip().endswith(f"{guest}/source")
    target = tmp_path / "target"
    target.mkdir()
    await terminal.succeed("sandbox", "download", sandbox, f"{guest}/source", target)
    assert (target / "source").read_bytes() == content
    await terminal.succeed("sandbox", "upload", sandbox, "-", f"{guest}/piped", stdin=b"\x00")
    assert await terminal.succeed("sandbox", "download", sandbox, f"{guest}/piped") == b"\x00"


async def test_a_failed_download_leaves_the_old_file_and_nothing_else(
    terminal: Terminal, sandbox: str, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    ended = await terminal.run("sandbox", "download", sandbox, f"{tmp_path}/none", target)
    assert ended.code == 1
    assert "[file_not_found]" in ended.stderr
    assert target.read_text() == "old"
    assert not (tmp_path / ".target.part").exists()


async def test_templates_are_listed(terminal: Terminal) -> None:
    listed = (await terminal.succeed("template", "list")).splitlines()
    templates = json.loads(await terminal.succeed("template", "list", "--json"))
    assert [line.split()[0] for line in listed] == [b"NAME", b"python"]
    assert [template["name"] for template in templates] == ["python"]
    missing = await terminal.run("template", "remove", "nope")
    assert missing.code == 1
    assert "[template_not_found]" in missing.stderr


async def test_without_tokens_none_is_needed(serving: Serve, tmp_path: Path) -> None:
    async with serving(tokens=False) as server:
        terminal = Terminal({"VMPOOL_SERVER": server.url, "VMPOOL_STATE": os.fspath(tmp_path)})
        assert await terminal.succeed("run", "--", "echo", "1") == b"1\n"
