"""Run: `vmpool run`, one program in a virtual machine that is made for it and gone after it."""

from __future__ import annotations

import posixpath
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmpool.cli import output, report, table, task
from vmpool.cli.birth import given
from vmpool.cli.connection import connects
from vmpool.cli.reach import network_of, network_options
from vmpool.cli.remote import path
from vmpool.errors import InvalidRequestError
from vmpool.model import DEFAULT_USER

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmpool.cli.remote import Remote


@click.command()
@connects
@click.option("-t", "--template", metavar="NAME", help="Template to run in.  [default: python]")
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    metavar="FILE[:GUEST_PATH]",
    help="Write a file into the guest first, into the home directory by default. Repeatable.",
)
@click.option(
    "-r",
    "--return",
    "returned",
    multiple=True,
    metavar="GUEST_PATH[:FILE]",
    help="Fetch a file at the end, into this directory by default. Repeatable.",
)
@click.option("-i", "--stdin", is_flag=True, help="Read stdin to its end and give it to it.")
@click.option("--timings", is_flag=True, help="Print how long each phase took, on stderr.")
@click.option("--json", "as_json", is_flag=True, help="Print the server's whole answer as JSON.")
@network_options
@task.task_options
def command(
    remote: Remote,
    *,
    template: str | None,
    files: tuple[str, ...],
    returned: tuple[str, ...],
    stdin: bool,
    timings: bool,
    as_json: bool,
    network: str | None,
    allow: tuple[dict[str, Any], ...],
    deny: tuple[dict[str, Any], ...],
    up: int | None,
    down: int | None,
    **what: Any,
) -> None:
    """Run a program in a virtual machine of its own.

    It prints what the program prints and exits with its exit code: 124 when its time was up,
    128 and the signal's number when one killed it, 125 when vmpool itself could not run it.

    \b
      vmpool run -- python3 -c 'print(1)'
      vmpool run --code 'import numpy; numpy.arange(3)'
      vmpool run -f data.csv -r /home/user/plot.png --code-file plot.py
    """
    body = task.task_body(**what)
    if template is not None:
        body["template"] = template
    if stdin:
        body |= output.encode("stdin", sys.stdin.buffer.read())
    fetched = dict(_fetched(word) for word in returned)
    body["files"] = dict(sent(word, what["user"] or DEFAULT_USER) for word in files)
    body["return_files"] = list(fetched)
    body |= given(network=network_of(network, allow=allow, deny=deny, up=up, down=down))
    answer = remote.once(path("run"), body)
    if as_json:
        table.print_json(answer)
    else:
        _print(answer)
    if timings:
        _print_timings(answer["timings_ms"])
    kept = _keep(answer["files"], fetched)
    code = task.exit_code(answer)
    click.get_current_context().exit(code if kept or code else report.ExitCode.NOT_RUN)


def _print(answer: dict[str, Any]) -> None:
    output.write_stream("stdout", output.decode(answer, "stdout"))
    output.write_stream("stderr", output.decode(answer, "stderr"))
    for mime in answer["results"]:
        output.write_result(mime)
    if answer["error"] is not None:
        output.write_traceback(answer["error"]["traceback"])
    if answer["truncated"]:
        report.say("vmpool: the output was over the server's limit and is cut")
    if why := task.epitaph(answer):
        report.say(f"vmpool: {why}")


def _print_timings(timings: dict[str, float | None]) -> None:
    phases = (f"{name} {_value(value)}" for name, value in timings.items())
    report.say(f"vmpool: {', '.join(phases)} (ms)")


def _value(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.1f}"


def sent(word: str, user: str) -> tuple[str, dict[str, str]]:
    """Return a file's path in the guest and its content as a request has it.

    Args:
        word: `FILE` or `FILE:GUEST_PATH`.
        user: Whose home a file without a path goes to.

    Raises:
        InvalidRequestError: `file_unreadable`.
    """
    name, _, target = word.partition(":")
    file = Path(name)
    try:
        content = file.read_bytes()
    except OSError as err:
        raise task.unreadable(file, err) from err
    home = "/root" if user == "root" else f"/home/{user}"
    return target or posixpath.join(home, file.name), output.encode("content", content)


def _fetched(word: str) -> tuple[str, Path]:
    """Return a guest's path and where what is there is kept on this host."""
    source, _, name = word.partition(":")
    file = Path(name or posixpath.basename(source))
    if not file.name:
        raise click.UsageError(f"--return {word!r} names no file")
    return source, file


def _keep(files: dict[str, dict[str, Any]], fetched: dict[str, Path]) -> bool:
    """Write the files that came back; return whether all that were asked for did."""
    complete = True
    for source, file in fetched.items():
        member = files.get(source, {})
        error = member.get("error")
        if error is not None:
            report.say(f"vmpool: no {source}: {table.printable(error['detail'])} [{error['code']}]")
            complete = False
            continue
        write_file(file, [output.decode(member, "content")])
    return complete


def write_file(file: Path, content: Sequence[bytes]) -> None:
    """Write a file of this host.

    Raises:
        InvalidRequestError: `file_unwritable`.
    """
    try:
        with file.open("wb") as opened:
            opened.writelines(content)
    except OSError as err:
        raise InvalidRequestError(
            f"cannot write {str(file)!r}: {err.strerror or err}", code="file_unwritable"
        ) from err
