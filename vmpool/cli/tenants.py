"""Tenants: `vmpool tenant`, whose tokens there are and how much each may have.

Works on the state directory itself, with a server running beside it or without one; a server that
runs knows of a change within two seconds.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import click

from vmpool.cli import table
from vmpool.cli.state import journal_path, state_option, usable
from vmpool.store import Store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from vmpool.store import TenantRow, TokenRow

T = TypeVar("T")
C = TypeVar("C", bound="Callable[..., Any]")

UNLIMITED = "unlimited"
DEFAULT = "default"

_RESOURCES = {
    "sandboxes": "Sandboxes with a machine, runs too, at one time",
    "paused": "Paused sandboxes",
    "checkpoints": "Checkpoints that it keeps",
    "vcpus": "Virtual CPUs of all its machines together",
    "memory_bytes": "Memory of all its machines together",
    "disk_bytes": "Disk of all its checkpoints and paused sandboxes together",
    "creates_per_minute": "Sandboxes, runs and children that it may ask for in a minute",
}

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


class Limit(click.ParamType[int | str]):
    """A number, or a word for none or for the settings' own."""

    name = "limit"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number or the word."""
        if value in {UNLIMITED, DEFAULT}:
            return value
        if str(value).isascii() and str(value).isdecimal():
            return int(value)
        return self.fail(f"{value!r} is no number, {UNLIMITED!r} or {DEFAULT!r}", param, ctx)


def _quota_options(command: C) -> C:
    for name, meaning in reversed(_RESOURCES.items()):
        option = f"--{name.replace('_', '-')}"
        command = click.option(option, type=Limit(), metavar="N", help=f"{meaning}.")(command)
    return command


@click.group()
def command() -> None:
    """Create, list, change and remove tenants.

    A limit is a number, or 'unlimited', or 'default' for what the settings say.
    """


@command.command()
@click.argument("name")
@_quota_options
@state_option
@json_option
def create(*, name: str, state: Path, as_json: bool, **limits: int | str | None) -> None:
    """Make a tenant and print its id.

    \b
      vmpool tenant create acme --sandboxes 8 --memory-bytes 4294967296
      vmpool token create ci --tenant acme
    """
    quota = _changed({}, limits)
    row = asyncio.run(_within(state, lambda store: store.tenants.add(name, quota)))
    if as_json:
        table.print_json(_document(row, ()))
    else:
        click.echo(row.id)


@command.command("list")
@state_option
@json_option
def list_(*, state: Path, as_json: bool) -> None:
    """List the tenants with their tokens, and the limits that are their own."""
    rows, tokens = asyncio.run(_within(state, _all))
    if as_json:
        table.print_json([_document(row, tokens) for row in rows])
        return
    table.print_table(
        ("ID", "NAME", "CREATED", "TOKENS", "LIMITS"),
        [
            (
                row.id,
                row.name,
                table.unix_moment(row.created_ns or None),
                ",".join(token.name for token in _good(tokens, row.id)),
                " ".join(f"{name}={_shown(most)}" for name, most in sorted(row.quota.items())),
            )
            for row in rows
        ],
    )


@command.command("set")
@click.argument("tenant", metavar="ID_OR_NAME")
@click.option("--name", help="What it is called from now on.")
@_quota_options
@state_option
def set_(*, tenant: str, name: str | None, state: Path, **limits: int | str | None) -> None:
    """Change a tenant; limits that are not named stay as they are."""
    asyncio.run(_within(state, lambda store: _set(store, tenant, name, limits)))


@command.command()
@click.argument("tenants", nargs=-1, required=True, metavar="ID_OR_NAME...")
@state_option
def remove(*, tenants: tuple[str, ...], state: Path) -> None:
    """Remove tenants that have no sandboxes and no checkpoints, and revoke their tokens."""
    asyncio.run(_within(state, lambda store: _remove(store, tenants)))


async def _within(state: Path, work: Callable[[Store], Awaitable[T]]) -> T:
    async with Store(journal_path(usable(state))) as store:
        return await work(store)


async def _all(store: Store) -> tuple[list[TenantRow], list[TokenRow]]:
    return await store.tenants.all(), await store.tokens.list()


async def _remove(store: Store, tenants: Sequence[str]) -> None:
    for tenant in tenants:
        await store.tenants.remove(tenant)


async def _set(
    store: Store, tenant: str, name: str | None, limits: dict[str, int | str | None]
) -> None:
    found = await store.tenants.find(tenant)
    await store.tenants.change(found.id, name=name, quota=_changed(found.quota, limits))


def _changed(
    quota: dict[str, int | None], limits: dict[str, int | str | None]
) -> dict[str, int | None]:
    """Return limits with those that were given in their place."""
    changed = dict(quota)
    for name, limit in limits.items():
        match limit:
            case None:
                continue
            case "default":
                changed.pop(name, None)
            case "unlimited":
                changed[name] = None
            case _:
                changed[name] = int(limit)
    return changed


def _good(tokens: Sequence[TokenRow], tenant_id: str) -> list[TokenRow]:
    return [each for each in tokens if each.tenant_id == tenant_id and each.revoked_ns is None]


def _shown(most: int | None) -> str:
    return UNLIMITED if most is None else str(most)


def _document(row: TenantRow, tokens: Sequence[TokenRow]) -> dict[str, object]:
    return {
        "id": row.id,
        "name": row.name,
        "created_ns": row.created_ns,
        "quota": row.quota,
        "tokens": [{"id": each.id, "name": each.name} for each in _good(tokens, row.id)],
    }
