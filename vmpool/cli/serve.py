"""Serve: `vmpool serve`, the server as a service runs it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from vmpool import tenure
from vmpool.cli import report
from vmpool.cli.listening import Interrupts, bound
from vmpool.cli.running import ended, places, served
from vmpool.cli.state import server_options, settings_from
from vmpool.opening import open_host

if TYPE_CHECKING:
    from vmpool.config import Settings
    from vmpool.opening import Base

_LEAVE_SECONDS = 10.0  # for all else that a server does as it ends


@click.command()
@click.option(
    "--drain",
    is_flag=True,
    help="Take over from the server that runs: it takes no new work, finishes what it does, and"
    " leaves its sandboxes to this one.",
)
@server_options
def command(*, drain: bool, **given: Any) -> None:
    """Serve the HTTP API until interrupted.

    It serves the templates that there are, and installs and builds nothing: `vmpool up` does.
    Sandboxes of a server that was killed go on.
    """
    settings = settings_from(**given)
    if drain:
        asyncio.run(take_over(settings))
    asyncio.run(serve(settings))


async def take_over(settings: Settings) -> None:
    """Have the server on these directories hand over, if there is one; return once it has ended.

    Raises:
        HostError: `server_stays`.
    """
    report.say("asking the server that runs to hand over")
    deadlines = settings.deadlines
    within = deadlines.drain + 2 * deadlines.kill + _LEAVE_SECONDS
    if not await tenure.succeed(settings.state, within=within):
        report.say("there is none")


async def serve(settings: Settings, *, base: Base | None = None) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: What to serve, and where.
        base: What starts machines; QEMU when `None`.

    Raises:
        VmpoolError: As `bound`, `open_host` and `served`.
        KeyboardInterrupt: A signal came before it served.
    """
    with Interrupts() as interrupts, bound(settings.address) as listener:
        async with (
            open_host(settings, progress=report.say, base=base) as host,
            served(host, listener) as endpoint,
        ):
            if not host.catalogue.statuses:
                report.say("there is no template yet: vmpool template create, or vmpool up")
            report.say(f"serving on {places(host, endpoint)}")
            await ended(interrupts, host)
