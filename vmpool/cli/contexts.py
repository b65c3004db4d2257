"""Contexts: `vmpool context`, interpreters of a sandbox that keep their state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmpool.cli import table
from vmpool.cli.birth import given, pairs
from vmpool.cli.connection import connects
from vmpool.cli.remote import path

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """Create, list, interrupt, restart and close interpreters that keep their state."""


@command.command()
@connects
@click.argument("sandbox")
@click.option(
    "--language",
    type=click.Choice(["python", "bash", "javascript"]),
    default="python",
    show_default=True,
    help="What it understands.",
)
@click.option(
    "-e",
    "--env",
    multiple=True,
    metavar="NAME=VALUE",
    help="Variable for all that runs in it. Repeatable.",
)
@click.option("-w", "--cwd", metavar="PATH", help="Working directory; an absolute path.")
@click.option("-u", "--user", metavar="NAME", help="Account in the guest.")
@json_option
def create(
    remote: Remote,
    *,
    sandbox: str,
    language: str,
    env: tuple[str, ...],
    cwd: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """Make a context and print its id; those named like a language need no making.

    \b
      context=$(vmpool context create $id)
      vmpool run-code $id --context $context --code 'x = 1'
    """
    body = given(language=language, cwd=cwd, user=user) | {"env": pairs("env", env)}
    one = remote.once(path("sandboxes", sandbox, "contexts"), body)
    if as_json:
        table.print_json(one)
    else:
        click.echo(one["id"])


@command.command("list")
@connects
@click.argument("sandbox")
@json_option
def list_(remote: Remote, *, sandbox: str, as_json: bool) -> None:
    """List the contexts of a sandbox, the oldest first."""
    listed = remote.call("GET", path("sandboxes", sandbox, "contexts"))["contexts"]
    if as_json:
        table.print_json(listed)
        return
    table.print_table(
        ("ID", "LANGUAGE", "STATE", "EXECUTIONS", "WAITING", "USER", "DIRECTORY"),
        [
            (
                one["id"],
                one["language"],
                one["state"],
                str(one["executions"]),
                str(one["waiting"]),
                one["user"],
                one["cwd"],
            )
            for one in listed
        ],
    )


@command.command()
@connects
@click.argument("sandbox")
@click.argument("context")
def interrupt(remote: Remote, *, sandbox: str, context: str) -> None:
    """Interrupt what runs in a context; its state stays."""
    remote.call("POST", path("sandboxes", sandbox, "contexts", context, "interrupt"))


@command.command()
@connects
@click.argument("sandbox")
@click.argument("context")
def restart(remote: Remote, *, sandbox: str, context: str) -> None:
    """Have a context begin anew, without its state; what runs and waits there ends."""
    remote.call("POST", path("sandboxes", sandbox, "contexts", context, "restart"))


@command.command()
@connects
@click.argument("sandbox")
@click.argument("contexts", nargs=-1, required=True, metavar="CONTEXT...")
def close(remote: Remote, *, sandbox: str, contexts: tuple[str, ...]) -> None:
    """End contexts, and all that runs and waits there."""
    for context in contexts:
        remote.call("DELETE", path("sandboxes", sandbox, "contexts", context))
