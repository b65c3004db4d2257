"""Execution: `vmpool exec`, one program in a sandbox, its output as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmpool.cli import remote as remotes
from vmpool.cli import table, task
from vmpool.cli.connection import connects
from vmpool.cli.transcript import Transcript

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote

_INTERPRETERS = {"python": ("python3", "-u", "-c"), "bash": ("/bin/bash", "-l", "-c")}


@click.command()
@connects
@click.argument("sandbox")
@click.option(
    "-i",
    "--stdin",
    is_flag=True,
    help="Pass stdin on as it comes; Ctrl-C goes to the program, a second one ends it.",
)
@click.option(
    "-b",
    "--background",
    is_flag=True,
    help="Let it stay, and print its process id at once; for vmpool attach and vmpool ps.",
)
@click.option("--tag", metavar="WORD", help="With --background, a word of yours for it.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
@task.task_options
def command(
    remote: Remote,
    *,
    sandbox: str,
    stdin: bool,
    background: bool,
    tag: str | None,
    as_json: bool,
    **what: Any,
) -> None:
    """Run a program in a sandbox and print its output as it comes.

    It exits as `vmpool run` does. Leaving it, by Ctrl-C for one, kills the program.

    \b
      vmpool exec SANDBOX -- bash -c 'for i in 1 2 3; do date; sleep 1; done'
      tar c src | vmpool exec -i SANDBOX -- tar x
      pid=$(vmpool exec -b SANDBOX -- ./serve)
    """
    if (background and stdin) or (tag is not None and not background):
        raise click.UsageError("--background goes without --stdin, and --tag only with it")
    body = task.task_body(**what)
    if background:
        _start(remote, sandbox, body if tag is None else body | {"tag": tag}, as_json=as_json)
        return
    path = remotes.path("sandboxes", sandbox, "exec")
    transcript = Transcript(as_json=as_json)
    if stdin:
        # Its client takes longer to import than all the rest of the command line.
        from vmpool.cli import conversation  # noqa: PLC0415

        # A refused WebSocket has no room for a problem document; this request has.
        remote.call("GET", remotes.path("sandboxes", sandbox))
        conversation.hold(remote.endpoint, path, body, transcript)
    else:
        with remote.open_json("POST", path, body) as answer:
            for event in remotes.lines(answer):
                transcript.take(event)
    click.get_current_context().exit(task.exit_code(transcript.end))


def _start(remote: Remote, sandbox: str, body: dict[str, Any], *, as_json: bool) -> None:
    """Start a program that stays, and print its process id."""
    source, language = body.pop("code", ""), body.pop("language", "")
    if language:
        body["argv"] = [*_INTERPRETERS[language], source]
    started = remote.call("POST", remotes.path("sandboxes", sandbox, "processes"), body)
    if as_json:
        table.print_json(started)
    else:
        click.echo(started["pid"])
