"""Reach: the options that say what a sandbox may reach on the network."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

_PROTOCOLS = frozenset({"tcp", "udp", "any"})
_CIDR = re.compile(r"[0-9.]+(/[0-9]+)?")


class Rule(click.ParamType[Any]):
    """Whom a rule is about, `WHERE[:PORTS][:tcp|udp]`, as the interface has it."""

    name = "rule"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        """Return a rule; whether it makes sense, the server says."""
        where, *said = value.split(":")
        if not where or len(said) > 2:
            self.fail(f"{value!r} is not WHERE[:PORTS][:tcp|udp]", param, ctx)
        rule: dict[str, Any] = {"cidr" if _CIDR.fullmatch(where) else "domain": where}
        for word in said:
            if word in _PROTOCOLS:
                rule["protocol"] = word
            else:
                rule["ports"] = [
                    int(each) if each.isdecimal() else each for each in word.split(",")
                ]
        return rule


def reach_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a network beside its mode."""
    where = "WHERE[:PORTS][:tcp|udp]"
    for option in reversed(
        (
            click.option(
                "--allow",
                multiple=True,
                type=Rule(),
                metavar=where,
                help="Let it reach a name, *.NAME or a CIDR. Repeatable.",
            ),
            click.option(
                "--deny",
                multiple=True,
                type=Rule(),
                metavar=where,
                help="Keep it from one, whatever is allowed. Repeatable.",
            ),
            click.option("--up", type=int, metavar="BYTES", help="Send so much a second at most."),
            click.option(
                "--down", type=int, metavar="BYTES", help="Receive so much a second at most."
            ),
        )
    ):
        command = option(command)
    return command


def network_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of a new machine's network."""
    return click.option(
        "--network",
        type=click.Choice(["none", "restricted", "open"]),
        help="How it is connected.  [default: restricted with --allow, or as the server says]",
    )(reach_options(command))


def network_of(
    network: str | None,
    *,
    allow: tuple[dict[str, Any], ...],
    deny: tuple[dict[str, Any], ...],
    up: int | None,
    down: int | None,
) -> dict[str, Any] | None:
    """Return what the options say, as a request has it; `None` when they say nothing.

    Raises:
        click.UsageError: They say what is allowed or how much, and not how it is connected.
    """
    if network is None and allow:
        network = "restricted"
    if network is None:
        if deny or up is not None or down is not None:
            raise click.UsageError("--deny, --up and --down need --network")
        return None
    body: dict[str, Any] = {"mode": network, "allow": list(allow), "deny": list(deny)}
    if up is not None or down is not None:
        body["bandwidth"] = {"up": up, "down": down}
    return body
