"""Pause: `vmpool pause`, sandboxes that go on later where they were."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmpool.cli.connection import connects
from vmpool.cli.remote import path

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote


@click.command()
@connects
@click.argument("sandboxes", nargs=-1, required=True, metavar="SANDBOX...")
@click.option(
    "--keep",
    type=click.Choice(["memory", "disk"]),
    default="memory",
    show_default=True,
    help="With 'disk' its disk alone: what runs in it ends, and resume boots it.",
)
def command(remote: Remote, *, sandboxes: tuple[str, ...], keep: str) -> None:
    """Save sandboxes and end their machines; files are all that is left of them.

    What runs in one stops where it is, and goes on with `vmpool resume`.
    """
    for sandbox in sandboxes:
        remote.once(path("sandboxes", sandbox, "pause"), {"keep": keep})
