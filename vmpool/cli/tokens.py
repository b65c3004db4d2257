"""Tokens: `vmpool token`, who may use the server.

Works on the state directory itself, with a server running beside it or without one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from vmpool.cli import table
from vmpool.cli.state import journal_path, state_option, usable
from vmpool.errors import NotFoundError
from vmpool.scope import Role, Scope
from vmpool.store import Store

if TYPE_CHECKING:
    from pathlib import Path

    from vmpool.store import TokenRow

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """Create, list and revoke access tokens."""


@command.command()
@click.argument("name", default="unnamed")
@click.option(
    "--role",
    type=click.Choice([role.value for role in Role]),
    help="What it may do: run and hold sandboxes, or everything.  [default: use]",
)
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    help="One thing that it may do, in place of a role; may be given several times.",
)
@click.option("--tenant", metavar="ID_OR_NAME", help="Whose it is.  [default: a tenant of its own]")
@state_option
@json_option
def create(
    *,
    name: str,
    role: str | None,
    scopes: tuple[str, ...],
    tenant: str | None,
    state: Path,
    as_json: bool,
) -> None:
    """Make a token and print it.

    It is shown this once: the server keeps nothing of it but a hash. NAME is for you.

    \b
      export VMPOOL_TOKEN=$(vmpool token create ci --tenant acme)
    """
    if role is not None and scopes:
        raise click.UsageError("--role and --scope exclude each other")
    wanted = frozenset(map(Scope, scopes)) or Role(role or Role.USE).scopes
    token, row = asyncio.run(_create(usable(state), name, wanted, tenant))
    if as_json:
        table.print_json(_document(row) | {"token": token})
    else:
        click.echo(token)


@command.command("list")
@state_option
@json_option
def list_(*, state: Path, as_json: bool) -> None:
    """List the tokens, revoked ones too, the oldest first."""
    rows = asyncio.run(_list(usable(state)))
    if as_json:
        table.print_json([_document(row) for row in rows])
        return
    table.print_table(
        ("ID", "NAME", "TENANT", "SCOPES", "CREATED", "LAST USED", "REVOKED"),
        [
            (
                row.id,
                row.name,
                row.tenant_id,
                ",".join(sorted(row.scopes)),
                table.unix_moment(row.created_ns),
                table.unix_moment(row.last_used_ns),
                table.unix_moment(row.revoked_ns),
            )
            for row in rows
        ],
    )


@command.command()
@click.argument("tokens", nargs=-1, required=True, metavar="ID_OR_NAME...")
@state_option
def revoke(*, tokens: tuple[str, ...], state: Path) -> None:
    """Make tokens useless within two seconds, for good; a name stands for all good tokens of it."""
    asyncio.run(_revoke(usable(state), tokens))


async def _create(
    state: Path, name: str, scopes: frozenset[Scope], tenant: str | None
) -> tuple[str, TokenRow]:
    async with Store(journal_path(state)) as store:
        return await store.tokens.add(name, scopes, tenant=tenant)


async def _list(state: Path) -> list[TokenRow]:
    async with Store(journal_path(state)) as store:
        return await store.tokens.list()


async def _revoke(state: Path, wanted: tuple[str, ...]) -> None:
    async with Store(journal_path(state)) as store:
        rows = await store.tokens.list()
        for one in wanted:
            ids = [
                row.id
                for row in rows
                if row.id == one or (row.name == one and row.revoked_ns is None)
            ]
            if not ids:
                raise NotFoundError(
                    f"there is no token {one!r}",
                    code="token_not_found",
                    remedy="see what there is: vmpool token list",
                )
            for token_id in ids:
                await store.tokens.revoke(token_id)


def _document(row: TokenRow) -> dict[str, object]:
    return {
        "id": row.id,
        "name": row.name,
        "tenant": row.tenant_id,
        "scopes": sorted(row.scopes),
        "created_ns": row.created_ns,
        "last_used_ns": row.last_used_ns,
        "revoked_ns": row.revoked_ns,
    }
