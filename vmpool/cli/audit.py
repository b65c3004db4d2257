"""Audit: `vmpool audit`, who did what on a server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from vmpool.cli import table
from vmpool.cli.connection import connects
from vmpool.cli.remote import path

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote

PAGE = 1000
"""Entries that a server tells at once."""


@click.command()
@connects
@click.option("--owner", metavar="ID", help="Only what this tenant did; its id, not its name.")
@click.option("--token-id", metavar="ID", help="Only what was done with this token.")
@click.option("--action", metavar="ACTION", help="Only this, like sandbox.create.")
@click.option("--sandbox", metavar="ID", help="Only what was done to this sandbox.")
@click.option(
    "-n",
    "--number",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Entries at most.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    remote: Remote,
    *,
    owner: str | None,
    token_id: str | None,
    action: str | None,
    sandbox: str | None,
    number: int,
    as_json: bool,
) -> None:
    """Show who did what, or tried, the newest first.

    Takes a token with the scope audit; other tenants' entries take the scope operator.

    \b
      vmpool audit --action sandbox.create -n 10
    """
    entries: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(entries) < number:
        asked = path(
            "audit",
            owner=owner,
            token=token_id,
            action=action,
            sandbox=sandbox,
            limit=min(number - len(entries), PAGE),
            cursor=cursor,
        )
        page = remote.call("GET", asked)
        entries += page["entries"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    if as_json:
        table.print_json(entries)
        return
    table.print_table(
        ("AT", "OWNER", "TOKEN", "ACTION", "SUBJECT", "OUTCOME", "DETAIL"),
        [
            (
                table.moment(one["at"]),
                one["owner"],
                one["token"] or "-",
                one["action"],
                one["subject"],
                one["outcome"],
                json.dumps(one["detail"], ensure_ascii=False) if one["detail"] else "",
            )
            for one in entries
        ],
    )
