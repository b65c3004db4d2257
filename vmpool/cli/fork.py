"""Fork: `vmpool fork`, many sandboxes of one that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmpool.cli import report, table
from vmpool.cli.birth import birth_body, birth_options
from vmpool.cli.connection import connects
from vmpool.cli.remote import path
from vmpool.cli.run import sent
from vmpool.model import DEFAULT_USER

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote


@click.command()
@connects
@click.argument("sandbox")
@click.option(
    "-n",
    "--count",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many children.",
)
@click.option(
    "-f",
    "--file",
    "files",
    multiple=True,
    metavar="FILE[:GUEST_PATH]",
    help="Write a file into each first, into the home directory by default. Repeatable.",
)
@birth_options
@click.option("--json", "as_json", is_flag=True, help="Print the server's whole answer as JSON.")
def command(
    remote: Remote,
    *,
    sandbox: str,
    count: int,
    files: tuple[str, ...],
    as_json: bool,
    **what: Any,
) -> None:
    """Make children of a running sandbox as it is now, and print their ids.

    It runs on. Exits with 1 when a child is missing; the others are there.

    \b
      for child in $(vmpool fork $id -n 5); do vmpool exec $child -- ./try.sh; done
    """
    body = {"count": count, "files": dict(sent(word, DEFAULT_USER) for word in files)}
    answer = remote.once(path("sandboxes", sandbox, "fork"), body | birth_body(**what))
    missing = [child["problem"] for child in answer["children"] if "problem" in child]
    if as_json:
        table.print_json(answer)
    else:
        for child in answer["children"]:
            if "sandbox" in child:
                click.echo(child["sandbox"]["id"])
        for problem in missing:
            report.say(
                f"vmpool: no child: {table.printable(problem['detail'])} [{problem['code']}]"
            )
    click.get_current_context().exit(report.ExitCode.FAILED if missing else report.ExitCode.OK)
