"""Watching: `vmpool watch`, what happens in a directory of a sandbox, a line for each change."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from vmpool.cli import remote as remotes
from vmpool.cli import table
from vmpool.cli.connection import connects
from vmpool.client.problem import error_of

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote


@click.command()
@connects
@click.argument("sandbox")
@click.argument("path")
@click.option("-r", "--recursive", is_flag=True, help="Watch the directories below it as well.")
@click.option("-u", "--user", metavar="NAME", help="Account in the guest.")
@click.option("--json", "as_json", is_flag=True, help="Print each change as a line of JSON.")
def command(
    remote: Remote, *, sandbox: str, path: str, recursive: bool, user: str | None, as_json: bool
) -> None:
    """Print what happens in a directory of a sandbox, until it is gone or Ctrl-C.

    \b
      vmpool watch --recursive SANDBOX /home/user/out
    """
    deep = "true" if recursive else None
    target = remotes.path(
        "sandboxes", sandbox, "files", "watch", path=path, user=user, recursive=deep
    )
    with remote.open("GET", target) as answer:
        for line in remotes.lines(answer):
            if line["type"] == "problem":
                raise error_of(line["problem"])
            if as_json:
                click.echo(json.dumps(line))
            elif line["type"] == "change":
                name = line["path"] + "/" * line["directory"]
                moved = line["destination"]
                to = f" -> {moved}" if moved else ""
                click.echo(table.printable(f"{line['event']:<10} {name}{to}".rstrip()))
