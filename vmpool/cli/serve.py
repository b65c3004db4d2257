"""Serve: `vmpool serve`, the server as a service runs it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from vmpool.cli import report
from vmpool.cli.listening import Interrupts, bound
from vmpool.cli.running import served
from vmpool.cli.state import server_options, settings_from
from vmpool.opening import open_host

if TYPE_CHECKING:
    from vmpool.config import Settings
    from vmpool.opening import Base


@click.command()
@server_options
def command(**given: Any) -> None:
    """Serve the HTTP API until interrupted.

    It serves the templates that there are, and installs and builds nothing: `vmpool up` does.
    """
    asyncio.run(serve(settings_from(**given)))


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
            report.say(f"serving on {endpoint.url}")
            await interrupts.wait()
            report.say("stopping")
