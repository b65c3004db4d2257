"""Version: `vmpool version`, for bug reports."""

from __future__ import annotations

import asyncio
import platform
from importlib import metadata

import click

from vmpool import tools
from vmpool.cli import table


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(*, as_json: bool) -> None:
    """Print the versions of vmpool and of what it runs on."""
    qemu = asyncio.run(tools.query_qemu_version())
    versions = {
        "vmpool": metadata.version("vmpool"),
        "python": platform.python_version(),
        "qemu": "none" if qemu is None else ".".join(map(str, qemu)),
        "kernel": platform.release(),
    }
    if as_json:
        table.print_json(versions)
    else:
        table.print_fields(versions)
