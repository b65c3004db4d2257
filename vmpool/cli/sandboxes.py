"""Sandboxes: `vmpool sandbox`, guests that are held for longer than one run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vmpool.cli import files, table
from vmpool.cli.birth import birth_body, birth_options, given, pairs
from vmpool.cli.connection import connects
from vmpool.cli.remote import path

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """Create, inspect, fill and kill sandboxes."""


@command.command()
@connects
@click.option("-t", "--template", metavar="NAME", help="Its template.  [default: python]")
@click.option(
    "--checkpoint", metavar="ID_OR_NAME", help="What it goes on from, in place of a template."
)
@birth_options
@click.option(
    "--on-expiry",
    type=click.Choice(["kill", "pause", "pause_disk"]),
    help="What becomes of it when its time is up.  [default: kill]",
)
@click.option(
    "--idle-timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="The same becomes of it after so long without work.",
)
@click.option(
    "--auto-resume", is_flag=True, help="Wake it from a pause when something is asked of its guest."
)
@click.option(
    "--public-port",
    "public_ports",
    type=click.IntRange(1, 65535),
    multiple=True,
    metavar="PORT",
    help="A port of it that everybody reaches. Repeatable.",
)
@json_option
def create(
    remote: Remote,
    *,
    template: str | None,
    checkpoint: str | None,
    on_expiry: str | None,
    idle_timeout: float | None,
    auto_resume: bool,
    public_ports: tuple[int, ...],
    as_json: bool,
    **what: Any,
) -> None:
    """Create a sandbox and print its id.

    \b
      id=$(vmpool sandbox create --timeout 600)
    """
    body = birth_body(**what) | given(
        template=template,
        checkpoint=checkpoint,
        on_expiry=on_expiry,
        idle_timeout=idle_timeout,
        auto_resume=auto_resume or None,
        public_ports=public_ports or None,
    )
    answer = remote.once(path("sandboxes"), body)
    if as_json:
        table.print_json(answer)
    else:
        click.echo(answer["id"])


@command.command("list")
@connects
@click.option(
    "-m", "--metadata", multiple=True, metavar="NAME=VALUE", help="Only those with it. Repeatable."
)
@json_option
def list_(remote: Remote, *, metadata: tuple[str, ...], as_json: bool) -> None:
    """List your sandboxes, newest first."""
    pairs("metadata", metadata)
    sandboxes: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        page = remote.call("GET", path("sandboxes", metadata=metadata, cursor=cursor))
        sandboxes += page["sandboxes"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    if as_json:
        table.print_json(sandboxes)
        return
    table.print_table(
        ("ID", "TEMPLATE", "STATE", "CREATED", "EXPIRES"),
        [
            (
                one["id"],
                one["template"],
                one["state"],
                table.moment(one["created_at"]),
                table.moment(one["expires_at"]),
            )
            for one in sandboxes
        ],
    )


@command.command()
@connects
@click.argument("sandbox")
@json_option
def show(remote: Remote, *, sandbox: str, as_json: bool) -> None:
    """Show a sandbox, its identity and its timings."""
    one = remote.call("GET", path("sandboxes", sandbox))
    if as_json:
        table.print_json(one)
        return
    identity = one["identity"]
    fields = {
        "id": one["id"],
        "template": one["template"],
        "state": one["state"],
        "created": table.moment(one["created_at"]),
        "expires": f"{table.moment(one['expires_at'])}, then: {one['on_expiry']}",
        "idle limit (s)": _said(one["idle_timeout"]),
        "forked from": _said(one["parent"]),
        "checkpoint": _said(one["checkpoint"]),
        "hostname": identity["hostname"],
        "machine id": identity["machine_id"],
        "boot id": identity["boot_id"],
        "seeded": f"kernel, {', '.join(identity['generators'])}",
        "timings (ms)": ", ".join(f"{name} {ms:.1f}" for name, ms in one["timings_ms"].items()),
    }
    metadata = {f"metadata {name}": value for name, value in one["metadata"].items()}
    table.print_fields(fields | metadata)


@command.command()
@connects
@click.argument("sandboxes", nargs=-1, required=True, metavar="SANDBOX...")
def kill(remote: Remote, *, sandboxes: tuple[str, ...]) -> None:
    """Kill sandboxes; nothing of them is left."""
    for sandbox in sandboxes:
        remote.call("DELETE", path("sandboxes", sandbox))


@command.command()
@connects
@click.argument("sandbox")
@click.argument("seconds", type=click.FloatRange(min=0))
def timeout(remote: Remote, *, sandbox: str, seconds: float) -> None:
    """Let a sandbox have SECONDS from now.

    That is longer or shorter than it had.
    """
    answer = remote.call("POST", path("sandboxes", sandbox, "timeout"), {"timeout": seconds})
    click.echo(f"expires {table.moment(answer['expires_at'])}")


def _said(value: object) -> str:
    return "-" if value is None else str(value)


for _file_command in (files.upload, files.download, files.ls):
    command.add_command(_file_command)
