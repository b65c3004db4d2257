"""Ps: `vmpool ps`, the processes of a sandbox that were started to stay."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import click

from vmpool.cli import table
from vmpool.cli.connection import connects
from vmpool.cli.remote import path

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote


@click.command()
@connects
@click.argument("sandbox")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(remote: Remote, *, sandbox: str, as_json: bool) -> None:
    """List the processes of a sandbox that were started to stay.

    Those that run and the last that ended, in the order of their starts.
    """
    listed = remote.call("GET", path("sandboxes", sandbox, "processes"))["processes"]
    if as_json:
        table.print_json(listed)
        return
    table.print_table(
        ("PID", "TAG", "USER", "TTY", "STATE", "STARTED", "OUTPUT", "COMMAND"),
        [
            (
                str(one["pid"]),
                one["tag"] or "-",
                one["user"],
                "yes" if one["pty"] else "-",
                _state(one["ended"]),
                table.moment(one["started_at"]),
                table.size(one["output_bytes"]),
                shlex.join(one["argv"]) + (" ..." if one["cut"] else ""),
            )
            for one in listed
        ],
    )


def _state(ended: dict[str, Any] | None) -> str:
    if ended is None:
        return "running"
    if ended["timed_out"]:
        return "timed out"
    if ended["signal"] is not None:
        return f"signal {ended['signal']}"
    return f"exit {ended['exit_code']}"
