"""Port forward: `vmpool port-forward`, a port of this machine that leads to one of a sandbox."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from vmpool.cli import report
from vmpool.cli.connection import connects

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote
    from vmpool.client.endpoint import Endpoint
    from vmpool.errors import VmpoolError

MOST_PORT = (1 << 16) - 1


def read_ports(text: str) -> tuple[int, int]:
    """Return a port of this machine, 0 for a free one, and one of the sandbox.

    Raises:
        ValueError: It is neither `PORT` nor `LOCAL:PORT`.
    """
    local, _, remote = text.rpartition(":")
    ports = int(local or remote), int(remote)
    if not (0 <= ports[0] <= MOST_PORT and 0 < ports[1] <= MOST_PORT):
        raise ValueError(text)
    return ports


@click.command()
@connects
@click.argument("sandbox")
@click.argument("ports", nargs=-1, required=True, type=read_ports, metavar="[LOCAL:]PORT...")
@click.option(
    "--address",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address of this machine to listen on; whoever reaches it reaches the sandbox's port.",
)
def command(
    remote: Remote, *, sandbox: str, ports: tuple[tuple[int, int], ...], address: str
) -> None:
    """Have ports of this machine lead to ports of a sandbox, until Ctrl-C.

    \b
      vmpool port-forward $id 8000
      vmpool port-forward $id 5433:5432 0:8000
    """
    remote.call("GET", f"/v1/sandboxes/{sandbox}/ports")  # a mistake in the id is told at once
    asyncio.run(_forward(remote.endpoint, sandbox, ports, address))


async def _forward(
    endpoint: Endpoint, sandbox: str, ports: tuple[tuple[int, int], ...], address: str
) -> None:
    # It takes longer to import than all the rest of the command line.
    from contextlib import AsyncExitStack  # noqa: PLC0415

    from vmpool.client.connection import Connection  # noqa: PLC0415
    from vmpool.client.ports import AsyncPorts  # noqa: PLC0415

    async with AsyncExitStack() as stack:
        connection = Connection(endpoint)
        stack.push_async_callback(connection.close)
        there = AsyncPorts(connection, sandbox)
        for local, port in ports:
            forward = await stack.enter_async_context(
                there[port].forward(local, host=address, on_failure=_tell)
            )
            click.echo(f"forwarding {forward.host}:{forward.port} to port {port} of {sandbox}")
        report.say("Ctrl-C ends")
        await asyncio.Event().wait()


def _tell(error: VmpoolError) -> None:
    report.say(str(error))
