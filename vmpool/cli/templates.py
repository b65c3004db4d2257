"""Templates: `vmpool template`, what a running server restores clones from."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from vmpool.cli import table
from vmpool.cli.connection import connects
from vmpool.cli.progress import Progress
from vmpool.cli.quantity import Size
from vmpool.cli.remote import path

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """Create, list and remove templates."""


@command.command()
@connects
@click.argument("name")
@click.option("--image", metavar="NAME", help="Image to boot.  [default: the one called NAME]")
@click.option("--checkpoint", metavar="ID", help="Checkpoint to make it of, in place of an image.")
@click.option("--memory", type=Size(), metavar="SIZE", help="Memory of each clone, like 512M.")
@click.option("--vcpus", type=click.IntRange(min=1), metavar="N", help="Virtual CPUs of each.")
@click.option("--disk", type=Size(), metavar="SIZE", help="Scratch disk of each; 0 for none.")
@click.option("--ready", type=click.IntRange(min=0), metavar="N", help="Clones to keep ready.")
@click.option(
    "--ready-most", type=click.IntRange(min=0), metavar="N", help="The same under demand, at most."
)
@click.option(
    "--standby", type=click.IntRange(min=0), metavar="N", help="Hypervisors to keep waiting."
)
@click.option("--total", type=click.IntRange(min=1), metavar="N", help="Clones at most.")
@json_option
def create(
    remote: Remote,
    *,
    name: str,
    image: str | None,
    checkpoint: str | None,
    memory: int | None,
    vcpus: int | None,
    disk: int | None,
    ready: int | None,
    ready_most: int | None,
    standby: int | None,
    total: int | None,
    as_json: bool,
) -> None:
    """Boot an image, or go on from a checkpoint, save it as the template NAME, and wait for it.

    Of a checkpoint it has all that was in the sandbox, processes that stay included.

    \b
      vmpool template create big --image python --memory 2G --ready 4
    """
    body: dict[str, Any] = {"name": name}
    if checkpoint is None:
        body["image"] = image or name
    else:
        body["checkpoint"] = checkpoint
        body |= {} if image is None else {"image": image}  # which the server refuses
    body |= _given(memory_bytes=memory, vcpus=vcpus, disk_bytes=disk)
    if limits := _given(ready=ready, ready_most=ready_most, standby=standby, total=total):
        body["limits"] = limits
    with Progress(sys.stderr) as progress:
        progress(f"making template {name}")
        one = remote.call("POST", path("templates"), body)
    if as_json:
        table.print_json(one)
    else:
        click.echo(name)


@command.command("list")
@connects
@json_option
def list_(remote: Remote, *, as_json: bool) -> None:
    """List the templates with their pools, and what is kept of those that are gone."""
    answer = remote.call("GET", path("templates"))
    templates, bases = answer["templates"], answer["bases"]
    if as_json:
        table.print_json(templates)
        return
    table.print_table(
        ("NAME", "STATE", "IMAGE", "MEMORY", "READY", "HELD", "WAITING", "ERROR"),
        [
            (
                one["name"],
                one["state"],
                one["image"],
                table.size(one["memory_bytes"]),
                f"{one['pool']['ready']}/{one['pool']['aim']}",
                str(one["pool"]["held"]),
                str(one["pool"]["waiting"]),
                one["error"],
            )
            for one in templates
        ],
    )
    if bases:
        together = table.size(sum(one["size_bytes"] for one in bases))
        what = (
            "snapshots of templates that are"
            if len(bases) > 1
            else "snapshot of a template that is"
        )
        click.echo(f"{len(bases)} {what} gone, kept for sandboxes and checkpoints: {together}")


@command.command()
@connects
@click.argument("name")
def remove(remote: Remote, *, name: str) -> None:
    """Remove a template with its snapshot; its sandboxes live on."""
    remote.call("DELETE", path("templates", name))


def _given(**values: int | None) -> dict[str, int]:
    return {name: value for name, value in values.items() if value is not None}
