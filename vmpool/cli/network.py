"""Network: `vmpool network`, what a sandbox's guest tries on the network, and what it sends."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from vmpool.cli import remote as remotes
from vmpool.cli import table
from vmpool.cli.connection import connects

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote


@click.group()
def command() -> None:
    """See what a sandbox was denied on the network, and the packets that pass."""


@command.command()
@connects
@click.argument("sandbox")
@click.option("--after", metavar="CURSOR", help="Only what came after this cursor.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON.")
def events(remote: Remote, *, sandbox: str, after: str | None, follow: bool, as_json: bool) -> None:
    """Print what the guest tried and was denied.

    \b
      vmpool network events --follow SANDBOX
    """
    path = remotes.path(
        *("sandboxes", sandbox, "network", "events"),
        after=after,
        follow="true" if follow else None,
    )
    with remote.open("GET", path) as answer:
        for line in remotes.lines(answer):
            _show(line, as_json=as_json)


@command.command()
@connects
@click.argument("sandbox")
@click.option("--seconds", type=float, help="How long; 60 unless given.")
@click.option("--bytes", "size_bytes", type=int, help="How much; 10 MiB unless given.")
def capture(remote: Remote, *, sandbox: str, seconds: float | None, size_bytes: int | None) -> None:
    """Write the packets that pass the guest's link to stdout, as pcap.

    What the firewall denies is in it too. It ends at its limits, or with Ctrl-C.

    \b
      vmpool network capture SANDBOX > packets.pcap
      vmpool network capture SANDBOX | tcpdump -nr -
    """
    target = sys.stdout.buffer
    if target.isatty():
        raise click.UsageError("packets are no text: send them to a file or a program")
    given = None if seconds is None else str(seconds)
    path = remotes.path("sandboxes", sandbox, "network", "capture", seconds=given, bytes=size_bytes)
    with remote.open("GET", path) as answer:
        for chunk in remotes.chunks(answer):
            target.write(chunk)
            target.flush()


def _show(line: dict[str, Any], *, as_json: bool) -> None:
    if line["type"] == "lost":
        if line["count"]:
            click.echo(f"{line['count']} more are not kept", err=True)
    elif as_json:
        click.echo(json.dumps(line))
    else:
        click.echo(table.printable(_words(line)))


def _words(event: dict[str, Any]) -> str:
    """Return an event as one line: when, what, where to, and what denied it."""
    where = event["destination"] or ""
    if event["port"] is not None:
        where += f":{event['port']}"
    shown = " ".join(filter(None, [where, event["name"]]))
    return f"{event['at']}  {event['protocol']:<5} {shown}  ({event['rule']})"
