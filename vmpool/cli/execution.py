"""Execution: `vmpool exec`, one program in a sandbox, its output as it comes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmpool.cli import remote as remotes
from vmpool.cli import task
from vmpool.cli.connection import connects
from vmpool.cli.transcript import Transcript

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote


@click.command()
@connects
@click.argument("sandbox")
@click.option(
    "-i",
    "--stdin",
    is_flag=True,
    help="Pass stdin on as it comes; Ctrl-C goes to the program, a second one ends it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
@task.task_options
def command(
    remote: Remote,
    *,
    sandbox: str,
    stdin: bool,
    as_json: bool,
    **what: Any,
) -> None:
    """Run a program in a sandbox and print its output as it comes.

    It exits as `vmpool run` does. Leaving it, by Ctrl-C for one, kills the program.

    \b
      vmpool exec SANDBOX -- bash -c 'for i in 1 2 3; do date; sleep 1; done'
      tar c src | vmpool exec -i SANDBOX -- tar x
    """
    body = task.task_body(**what)
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
