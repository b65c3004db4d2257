"""The command line's frame: its table of commands, its help, how commands end."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from vmpool.cli import demonstration
from vmpool.cli.program import COMMANDS, main

HEAVY = {"aiohttp", "asyncio", "sqlite_utils", "vmpool.host"}


def run(*argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("vmpool"), *argv],
        env=os.environ | env,
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_of_each_command_what_the_command_says(name: str) -> None:
    entry = COMMANDS[name]
    command = importlib.import_module(f"vmpool.cli.{entry.module}").command
    assert isinstance(command, click.Command)
    assert (command.help or "").splitlines()[0] == entry.summary


def test_help_lists_every_command_and_imports_none() -> None:
    script = (
        "import sys\nfrom vmpool.cli import main\ntry:\n    main(['--help'])\n"
        "finally:\n"
        "    loaded = sorted(name for name in sys.modules if name.startswith('vmpool.cli.'))\n"
        "    print(*loaded, file=sys.stderr)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=False, text=True
    )
    assert ended.returncode == 0
    assert all(f"  {name} " in ended.stdout for name in COMMANDS)
    assert ended.stderr.split() == ["vmpool.cli.program", "vmpool.cli.report"]


def test_running_a_program_imports_nothing_heavy() -> None:
    script = (
        "import sys, vmpool.cli.run, vmpool.cli.execution\n"
        f"print(*({HEAVY!r} & sys.modules.keys()))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=False, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, "\n")


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["serve", "--frobnicate"], 2, "No such option '--frobnicate'"),
        (["sandbox", "timeout", "x", "never"], 2, "'never' is not a valid float"),
        (["sandbox", "create", "-e", "NAME"], 2, "--env takes NAME=VALUE, not 'NAME'"),
        (["run"], 125, "say what to run"),
        (["run", "--code", "1", "--", "true"], 125, "say what to run"),
        (["run", "python3", "-c", "print(1)"], 125, "Put -- before it"),
        (["run", "--timeout", "0", "--", "true"], 125, "--timeout"),
    ],
)
def test_a_wrong_word_is_named_without_a_stack_trace(
    argv: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    output = capsys.readouterr()
    assert ended.value.code == code
    assert words in output.err
    assert "Traceback" not in output.err


def test_without_a_server_the_remedy_is_said_and_the_exit_code_is_the_commands_own(
    tmp_path: Path,
) -> None:
    nowhere = {"VMPOOL_SERVER": "http://127.0.0.1:1", "VMPOOL_STATE": os.fspath(tmp_path)}
    for argv, code in ((["run", "--", "true"], 125), (["sandbox", "list"], 3)):
        ended = run(*argv, **nowhere)
        assert ended.returncode == code
        assert ended.stderr.splitlines() == [
            "error: no server answers at http://127.0.0.1:1: Connection refused [no_server]",
            "       start one: vmpool up  (or name another: --server URL, --state DIR)",
        ]


def test_an_error_is_one_line_of_json_where_json_was_asked_for(tmp_path: Path) -> None:
    ended = run(
        "run", "--json", "--server", "ftp://x", "--state", os.fspath(tmp_path), "--", "true"
    )
    assert ended.returncode == 125
    assert ended.stdout == ""
    assert ended.stderr.startswith('{"code": "invalid_server", "fault": "caller", "message": ')


def test_json_among_the_guests_words_is_the_guests(tmp_path: Path) -> None:
    ended = run("run", "--server", "ftp://x", "--state", os.fspath(tmp_path), "--", "ls", "--json")
    assert ended.stderr.startswith("error: ")


def test_debug_shows_the_stack_trace(tmp_path: Path) -> None:
    ended = run("--debug", "run", "--server", "ftp://x", "--state", os.fspath(tmp_path), "--", "x")
    assert "Traceback" in ended.stderr


def test_a_reader_that_left_is_no_failure_to_shout_about() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        ended = subprocess.run(
            [Path(sys.executable).with_name("vmpool"), "version"],
            stdout=closed,
            check=False,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert (ended.returncode, ended.stderr) == (1, "")


def test_the_next_command_line_names_the_program_as_this_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "vmpool"
    own.touch(mode=0o755)
    monkeypatch.setattr("sys.argv", [str(own)])
    monkeypatch.setenv("PATH", "/nowhere")
    assert demonstration.program() == str(own)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert demonstration.program() == "vmpool"
