"""Network: `vmpool network`, what a sandbox's guest tries on the network, and what it sends."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from vmpool.cli import remote as remotes
from vmpool.cli import table
from vmpool.cli.connection import connects
from vmpool.cli.reach import network_of, reach_options

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote


@click.group()
def command() -> None:
    """See what a sandbox was denied on the network, and the packets that pass."""


@command.command()
@connects
@click.argument("sandbox")
@click.option("--json", "as_json", is_flag=True, help="Print the server's answer as JSON.")
def show(remote: Remote, *, sandbox: str, as_json: bool) -> None:
    """Print what a sandbox may reach, and what passed."""
    _print(remote.call("GET", remotes.path("sandboxes", sandbox, "network")), as_json=as_json)


@command.command("set")
@connects
@click.argument("sandbox")
@click.argument("mode", type=click.Choice(["none", "restricted", "open"]))
@reach_options
@click.option("--json", "as_json", is_flag=True, help="Print the server's answer as JSON.")
def set_(remote: Remote, *, sandbox: str, mode: str, as_json: bool, **reach: Any) -> None:
    """Set what a sandbox may reach, for connections that there are as well.

    \b
      vmpool network set SANDBOX restricted --allow '*.pypi.org:443' --allow 203.0.113.0/24:443:tcp
      vmpool network set SANDBOX none
    """
    place = remotes.path("sandboxes", sandbox, "network")
    _print(remote.call("PUT", place, network_of(mode, **reach)), as_json=as_json)


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


def _print(network: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(network))
        return
    click.echo(f"mode  {network['mode']}")
    for kind in ("allow", "deny"):
        for rule in network[kind]:
            where = rule["cidr"] or rule["domain"]
            ports = ",".join(map(str, rule["ports"])) or "all ports"
            click.echo(table.printable(f"{kind}  {where} {rule['protocol']} {ports}"))
    for way, most in network["bandwidth"].items():
        if most is not None:
            click.echo(f"{way}  {most} bytes a second")
    for name, number in network.get("traffic", {}).items():
        click.echo(f"{name.replace('_', ' ')}  {number}")


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
