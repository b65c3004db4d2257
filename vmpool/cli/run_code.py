"""Run code: `vmpool run-code`, source in an interpreter of a sandbox that keeps its state."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmpool.cli import remote as remotes
from vmpool.cli import report, task
from vmpool.cli.birth import given, pairs
from vmpool.cli.connection import connects
from vmpool.cli.transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from vmpool.cli.remote import Remote

PROMPT, MORE = ">>> ", "... "
_OPENS = (":", "\\", "{", "(", "[")
"""What a line ends with that wants more lines; so does one that begins a magic of a whole cell."""


@click.command()
@connects
@click.argument("sandbox")
@click.argument("file", required=False, type=click.Path(path_type=Path, allow_dash=True))
@click.option("--code", metavar="SOURCE", help="Run this source instead of a file.")
@click.option(
    "--language",
    type=click.Choice(["python", "bash", "javascript"]),
    default="python",
    show_default=True,
    help="Run it in the sandbox's own context of this language.",
)
@click.option("--context", metavar="ID", help="Run it in this context instead.")
@click.option(
    "-e",
    "--env",
    multiple=True,
    metavar="NAME=VALUE",
    help="Variable for this execution alone. Repeatable.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Interrupt it after so long.",
)
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
def command(
    remote: Remote,
    *,
    sandbox: str,
    file: Path | None,
    code: str | None,
    language: str,
    context: str | None,
    env: tuple[str, ...],
    timeout: float | None,
    as_json: bool,
) -> None:
    """Run source in an interpreter of a sandbox that keeps its state.

    What it leaves, the next finds: variables, imports, directory. Of FILE, of stdin, or at a
    terminal line by line, a block until an empty line. It exits as the code does. Leaving it, by
    Ctrl-C for one, interrupts the code and keeps the state.

    \b
      vmpool run-code $id --code 'x = 41'
      vmpool run-code $id --code 'x + 1'
    """
    if code is not None and file is not None:
        raise click.UsageError("say what to run: FILE, or --code SOURCE")
    path = remotes.path("sandboxes", sandbox, "contexts", context or language, "exec")
    options = given(timeout=timeout) | {"env": pairs("env", env)}
    if code is None and file is None and sys.stdin.isatty():
        for cell in cells(input):
            _run_at_terminal(remote, path, options | {"code": cell}, as_json=as_json)
        return
    source = code if code is not None else task.read_source(file or Path("-"))
    ended = _run(remote, path, options | {"code": source}, as_json=as_json)
    click.get_current_context().exit(task.exit_code(ended))


def cells(read: Callable[[str], str]) -> Iterator[str]:
    """Yield what is typed, a line at a time or a block, until the end of input.

    Args:
        read: Shows a prompt and returns a line; raises EOFError at the end.
    """
    while True:
        try:
            lines = [read(PROMPT)]
            if lines[0].rstrip().endswith(_OPENS) or lines[0].startswith(("%%", "@")):
                while line := read(MORE):
                    lines.append(line)
        except EOFError:
            return
        if source := "\n".join(lines).strip():
            yield source


def _run(remote: Remote, path: str, body: dict[str, Any], *, as_json: bool) -> dict[str, Any]:
    transcript = Transcript(as_json=as_json)
    with remote.open_json("POST", path, body) as answer:
        for event in remotes.lines(answer):
            transcript.take(event)
    return transcript.end


def _run_at_terminal(remote: Remote, path: str, body: dict[str, Any], *, as_json: bool) -> None:
    """Run a cell; Ctrl-C ends it and not the conversation."""
    try:
        _run(remote, path, body, as_json=as_json)
    except KeyboardInterrupt:
        report.say("interrupted; its state stays")
