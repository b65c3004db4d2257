"""Usage: `vmpool usage`, what a tenant has and may have."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmpool.cli import table
from vmpool.cli.connection import connects
from vmpool.cli.remote import path

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote


@click.command()
@connects
@click.option("--tenant", metavar="ID", help="Whose.  [default: the token's own]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(remote: Remote, *, tenant: str | None, as_json: bool) -> None:
    """Show what a tenant has, and what it may have.

    Another tenant's takes a token with the scope operator.
    """
    found = remote.call("GET", path("usage", tenant=tenant))
    if as_json:
        table.print_json(found)
        return
    table.print_table(
        ("RESOURCE", "USED", "LIMIT"),
        [
            (name, _shown(name, used), _shown(name, found["limits"][name]))
            for name, used in found["used"].items()
        ],
    )


def _shown(resource: str, amount: int | None) -> str:
    if amount is None:
        return "unlimited"
    return table.size(amount) if resource.endswith("_bytes") else str(amount)
