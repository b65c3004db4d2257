"""Attachment: `vmpool attach`, following a process that was started to stay."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from vmpool.cli import remote as remotes
from vmpool.cli import report, task
from vmpool.cli.connection import connects
from vmpool.cli.transcript import Transcript
from vmpool.errors import NotFoundError

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote

BACKLOG_BYTES = 1 << 16


@click.command()
@connects
@click.argument("sandbox")
@click.argument("pid", type=int)
@click.option(
    "--backlog",
    type=click.IntRange(min=0),
    default=BACKLOG_BYTES,
    show_default=True,
    metavar="BYTES",
    help="How much of what it wrote before is printed first; the server holds 64 KiB at most.",
)
@click.option("-i", "--stdin", is_flag=True, help="Pass stdin on as it comes, and its end.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
def command(
    remote: Remote, *, sandbox: str, pid: int, backlog: int, stdin: bool, as_json: bool
) -> None:
    """Print what a process writes, until it ends; then exit as it did.

    Leaving lets the process go on. One that runs at a terminal takes over this one: Ctrl-]
    detaches.

    \b
      pid=$(vmpool exec --background $id -- ./serve)
      vmpool attach $id $pid
    """
    # A refused WebSocket has no room for a problem document; this request has.
    process = find(remote, sandbox, pid)
    if process["pty"] is not None and sys.stdin.isatty() and not as_json:
        follow_at_terminal(remote, sandbox, pid, backlog)
        return
    transcript = Transcript(as_json=as_json)
    if stdin:
        # Its client takes longer to import than all the rest of the command line.
        from vmpool.cli import conversation  # noqa: PLC0415

        conversation.hold(remote.endpoint, socket_path(sandbox, pid, backlog), None, transcript)
    else:
        path = remotes.path("sandboxes", sandbox, "processes", str(pid), backlog_bytes=backlog)
        with remote.open("GET", path) as answer:
            for event in remotes.lines(answer):
                transcript.take(event)
    click.get_current_context().exit(task.exit_code(transcript.end))


def find(remote: Remote, sandbox: str, pid: int) -> dict[str, Any]:
    """Return a process.

    Raises:
        NotFoundError: `process_not_found`.
    """
    listed = remote.call("GET", remotes.path("sandboxes", sandbox, "processes"))["processes"]
    for one in listed:
        if one["pid"] == pid:
            found: dict[str, Any] = one
            return found
    raise NotFoundError(f"there is no process {pid}", code="process_not_found")


def socket_path(sandbox: str, pid: int, backlog_bytes: int) -> str:
    """Return where a process is talked to."""
    words = ("sandboxes", sandbox, "processes", str(pid), "attach")
    return remotes.path(*words, backlog_bytes=backlog_bytes)


def follow_at_terminal(remote: Remote, sandbox: str, pid: int, backlog_bytes: int) -> None:
    """Give this terminal to a process that runs at one; exit as it did, or when detached."""
    from vmpool.cli import terminal  # noqa: PLC0415 -- its client takes long to import

    transcript = Transcript(as_json=False)
    ending = terminal.hold(remote.endpoint, socket_path(sandbox, pid, backlog_bytes), transcript)
    if ending is terminal.Ending.DETACHED:
        report.say(f"detached; to return: vmpool attach {sandbox} {pid}")
        return
    click.get_current_context().exit(task.exit_code(transcript.end))
