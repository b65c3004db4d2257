"""Checkpoints: `vmpool checkpoint`, what sandboxes were, kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmpool.cli import parcels, table
from vmpool.cli.birth import given
from vmpool.cli.connection import connects
from vmpool.cli.remote import path

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """Create, list, remove, export and import checkpoints of sandboxes."""


@command.command()
@connects
@click.argument("sandbox")
@click.argument("name", required=False)
@click.option(
    "--move",
    "if_taken",
    flag_value="move",
    help="Take NAME from the checkpoint that has it; that one goes by its id from then on.",
)
@click.option(
    "--keep",
    type=click.Choice(["memory", "disk"]),
    default="memory",
    show_default=True,
    help="With 'disk' its disk alone: what is made of that is booted.",
)
@json_option
def create(
    remote: Remote,
    *,
    sandbox: str,
    name: str | None,
    if_taken: str | None,
    keep: str,
    as_json: bool,
) -> None:
    """Keep what a sandbox is now, memory and disk, and print the checkpoint's id.

    The sandbox runs on. NAME is yours, and serves wherever an id does.

    \b
      vmpool checkpoint create $id before-training
      vmpool rollback $id before-training
    """
    what = given(name=name, if_taken=if_taken) | {"keep": keep}
    one = remote.once(path("sandboxes", sandbox, "checkpoints"), what)
    if as_json:
        table.print_json(one)
    else:
        click.echo(one["id"])


@command.command("list")
@connects
@click.option("--sandbox", metavar="ID", help="Only those of this sandbox.")
@json_option
def list_(remote: Remote, *, sandbox: str | None, as_json: bool) -> None:
    """List your checkpoints, newest first."""
    checkpoints: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = remote.call("GET", path("checkpoints", sandbox=sandbox, cursor=cursor))
        checkpoints += page["checkpoints"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    if as_json:
        table.print_json(checkpoints)
        return
    table.print_table(
        ("ID", "NAME", "SANDBOX", "TEMPLATE", "KEPT", "CREATED", "CHANGED", "ON DISK"),
        [
            (
                one["id"],
                one["name"] or "-",
                one["sandbox"],
                one["template"],
                one["keep"],
                table.moment(one["created_at"]),
                table.size(one["dirty_bytes"]),
                table.size(one["size_bytes"]),
            )
            for one in checkpoints
        ],
    )


@command.command()
@connects
@click.argument("checkpoints", nargs=-1, required=True, metavar="ID_OR_NAME...")
def remove(remote: Remote, *, checkpoints: tuple[str, ...]) -> None:
    """Remove checkpoints for good; what was made of them lives on."""
    for checkpoint in checkpoints:
        remote.call("DELETE", path("checkpoints", checkpoint))


command.add_command(parcels.export)
command.add_command(parcels.import_)
