"""Shell: `vmpool shell`, an interactive program at a terminal in a sandbox."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from vmpool.cli import attachment, task
from vmpool.cli.connection import connects
from vmpool.cli.remote import path

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote

_LOGIN_SHELL = ("/bin/bash", "-il")


@click.command()
@connects
@click.argument("sandbox")
@click.argument("argv", nargs=-1, metavar="[-- PROGRAM [ARGUMENT]...]")
@click.option(
    "-e",
    "--env",
    multiple=True,
    metavar="NAME[=VALUE]",
    help="Set a variable; without a value it has the one that it has here. Repeatable.",
)
@click.option("-w", "--cwd", metavar="PATH", help="Working directory; an absolute path.")
@click.option("-u", "--user", metavar="NAME", help="Account in the guest.")
def command(
    remote: Remote,
    *,
    sandbox: str,
    argv: tuple[str, ...],
    env: tuple[str, ...],
    cwd: str | None,
    user: str | None,
) -> None:
    """Start a shell at a terminal in a sandbox, or another program, and attach to it.

    Ctrl-] detaches: the program goes on, and `vmpool attach` returns to it. So it does when the
    connection is lost.
    """
    if not sys.stdin.isatty():
        raise click.UsageError("a shell needs a terminal; for a script there is vmpool exec -i")
    from vmpool.cli import terminal  # noqa: PLC0415 -- its client takes long to import

    body: dict[str, Any] = {
        "argv": argv or _LOGIN_SHELL,
        "env": dict(map(task.variable, env)),
        "cwd": cwd,
        "user": user,
        "pty": terminal.size(),
        "tag": "shell",
    }
    given = {name: value for name, value in body.items() if value is not None}
    started = remote.call("POST", path("sandboxes", sandbox, "processes"), given)
    attachment.follow_at_terminal(remote, sandbox, started["pid"], attachment.BACKLOG_BYTES)
