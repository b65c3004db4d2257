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


@click.command()
@server_options
def command(**given: Any) -> None:
    """Serve the HTTP API until interrupted.

    It serves the templates that there are, and installs and builds nothing: `vmpool up` does.
    """
    asyncio.run(_serve(settings_from(**given)))


async def _serve(settings: Settings) -> None:
    with Interrupts() as interrupts, bound(settings.address) as listener:
        async with (
            open_host(settings, progress=report.say) as host,
            served(host, listener) as endpoint,
        ):
            report.say(f"serving on {endpoint.url}")
            await interrupts.wait()
            report.say("stopping")
