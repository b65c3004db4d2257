"""Resume: `vmpool resume`, a paused sandbox goes on where it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmpool.cli import table
from vmpool.cli.birth import given
from vmpool.cli.connection import connects
from vmpool.cli.remote import path

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote


@click.command()
@connects
@click.argument("sandbox")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Its time is up after so long.  [default: what was left of its time]",
)
@click.option(
    "--keep",
    type=click.Choice(["memory", "disk"]),
    default="memory",
    show_default=True,
    help="With 'disk' it is booted on its disk, also when its memory was kept.",
)
def command(remote: Remote, *, sandbox: str, timeout: float | None, keep: str) -> None:
    """Go on with a paused sandbox."""
    what = given(timeout=timeout) | {"keep": keep}
    one = remote.once(path("sandboxes", sandbox, "resume"), what)
    click.echo(f"expires {table.moment(one['expires_at'])}")
