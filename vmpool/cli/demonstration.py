"""Demonstration: one real request to a server, what came of it, and how to send the next."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmpool import local
from vmpool.cli import output, table
from vmpool.cli.remote import path
from vmpool.client.endpoint import Endpoint, found_state
from vmpool.errors import GuestError

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote

SOURCE = """\
import os, sys
print("6 * 7 =", 6 * 7)
print("host", os.uname().nodename, "kernel", os.uname().release, "python", sys.version.split()[0])
print("user", os.environ.get("USER", os.getuid()), "pid", os.getpid(), "cpus", os.cpu_count())
"""
"""Modules that every interpreter has loaded: importing one costs more than all the rest here."""

PHASES = {
    "acquire": "a clone in hand",
    "upload": "files written into it",
    "first_output": "the code's first output",
    "execute": "the code's end",
    "collect": "files read out of it",
    "total": "the whole request in the server",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """What the next request needs to know."""

    endpoint: Endpoint
    state: Path
    template: str


FILL_TIMEOUT = 60.0
LOOK_AGAIN = 0.1
"""Seconds between two looks at a pool: the interface has nothing to wait on."""


def await_clones(remote: Remote, template: str) -> None:
    """Wait until a template's pool is full, or `FILL_TIMEOUT` seconds have gone.

    A request to a pool that is still being filled would show how long filling takes.

    Raises:
        VmpoolError: The server's error.
    """
    deadline = time.monotonic() + FILL_TIMEOUT
    while time.monotonic() < deadline:
        now = remote.call("GET", path("templates", template))
        if now["pool"]["ready"] >= now["limits"]["ready"]:
            return
        time.sleep(LOOK_AGAIN)


def send(remote: Remote, template: str) -> dict[str, Any]:
    """Run the demonstration in a machine of its own.

    Raises:
        VmpoolError: The server's error, or `demonstration_failed` when the code failed.
    """
    answer: dict[str, Any] = remote.call(
        "POST", path("run"), {"template": template, "code": SOURCE}
    )
    if answer["exit_code"] != 0:
        raise GuestError(
            f"the demonstration failed in the guest: {table.printable(answer['stderr'][-500:])}",
            code="demonstration_failed",
        )
    return answer


def show(answer: dict[str, Any], address: Address) -> None:
    """Print what came back, how long each phase took, and the next command lines."""
    click.echo(f"\nPOST {address.endpoint.url}/v1/run answered:")
    for line in output.decode(answer, "stdout").decode(errors="replace").splitlines():
        click.echo(f"    {table.printable(line)}")
    click.echo("\nIt took, in milliseconds:")
    for phase, milliseconds in answer["timings_ms"].items():
        value = "-" if milliseconds is None else f"{milliseconds:.1f}"
        click.echo(f"    {phase:<13}{value:>8}  {PHASES.get(phase, '')}".rstrip())
    click.echo("\nSend the next one, from another terminal:")
    for line in next_commands(address):
        click.echo(f"    {line}")


def program() -> str:
    """Return how a shell in this directory calls this program: by name where PATH leads to it."""
    own = Path(sys.argv[0])
    found = shutil.which("vmpool")
    if own.name != "vmpool" or (found and Path(found).samefile(own)):
        return "vmpool"
    return str(own)


def next_commands(address: Address) -> tuple[str, str]:
    """Return command lines that work as they stand on this host: vmpool's own, and curl's."""
    words = [program(), "run"]
    if address.state != found_state():
        words += ["--state", str(address.state)]
    if address.template != "python":
        words += ["--template", address.template]
    own = shlex.join([*words, "--", "python3", "-c", "print(1)"])
    token = shlex.quote(str(local.token_path(address.state)))
    bearer = f' -H "Authorization: Bearer $(cat {token})"' if address.endpoint.token else ""
    body = f'{{"template": "{address.template}", "code": "print(6*7)"}}'
    curl = (
        f"curl -s{bearer} -H 'Content-Type: application/json'"
        f" -d '{body}' {address.endpoint.url}/v1/run"
    )
    return own, curl
