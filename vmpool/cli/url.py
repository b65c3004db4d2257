"""Url: `vmpool url`, where a port of a sandbox is found, and who may reach it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from vmpool.cli import table
from vmpool.cli.connection import connects
from vmpool.cli.port_forward import MOST_PORT
from vmpool.cli.remote import path

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote


@click.command()
@connects
@click.argument("sandbox")
@click.argument("port", type=click.IntRange(1, MOST_PORT))
@click.option(
    "--public/--private", default=None, help="Let everybody reach it from now on, or nobody else."
)
@click.option(
    "--traffic-token",
    "make_token",
    is_flag=True,
    help="Make a token that opens it and nothing else, and print that in place of the address.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(
    remote: Remote,
    *,
    sandbox: str,
    port: int,
    public: bool | None,
    make_token: bool,
    as_json: bool,
) -> None:
    """Print where a port of a sandbox is found.

    It has a host name of its own, or is a path of the server.

    \b
      curl -H "vmpool-traffic-token: $(vmpool url --traffic-token $id 8000)" $(vmpool url $id 8000)
    """
    where = path("sandboxes", sandbox, "ports", str(port))
    if public is None:
        found = remote.call("GET", where)
    else:
        found = remote.call("PUT", where, {"access": "public" if public else "private"})
    url = _url(remote.endpoint.url, found)
    token = None
    if make_token:
        made = remote.call("POST", path("sandboxes", sandbox, "ports", "tokens"), {"port": port})
        token = made["token"]
    if as_json:
        table.print_json(found | {"url": url} | ({} if token is None else {"token": token}))
    else:
        click.echo(url if token is None else token)


def _url(server: str, found: dict[str, Any]) -> str:
    if found["host"] is None:
        return f"{server}{found['path']}"
    return f"{urlsplit(server).scheme}://{found['host']}/"
