"""Keys: `vmpool key`, whose images, snapshots and exported checkpoints this host believes.

Works on the state directory itself, with a server running beside it or without one; a server heeds
what was changed at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmpool.cli import table
from vmpool.cli.state import state_option, usable
from vmpool.trust import Keyring, PublicKey

if TYPE_CHECKING:
    from pathlib import Path

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """Show this host's key, and trust those of other hosts."""


@command.command()
@state_option
def show(*, state: Path) -> None:
    """Print the public key of this host, which others trust to import what it exports."""
    click.echo(str(Keyring.open(usable(state)).own.public))


@command.command("list")
@state_option
@json_option
def list_(*, state: Path, as_json: bool) -> None:
    """List the keys of other hosts that this one trusts."""
    known = Keyring.open(usable(state)).trusted()
    if as_json:
        table.print_json([{"key": str(each.key), "comment": each.comment} for each in known])
        return
    table.print_table(("KEY", "COMMENT"), [(str(each.key), each.comment) for each in known])


@command.command()
@click.argument("key")
@click.argument("comment", default="")
@state_option
def trust(*, key: str, comment: str, state: Path) -> None:
    """Believe what the host of a key has signed, from now on.

    Whoever has that key decides what hypervisors of this host are loaded with. COMMENT is for you:
    whose key it is.

    \b
      vmpool key trust ed25519:3jzU... build-server
    """
    Keyring.open(usable(state)).trust(PublicKey.parse(key), comment)


@command.command()
@click.argument("key")
@state_option
def distrust(*, key: str, state: Path) -> None:
    """Believe a key no more; what was imported before stays, under this host's own."""
    Keyring.open(usable(state)).distrust(PublicKey.parse(key))
