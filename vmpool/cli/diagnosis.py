"""Diagnosis: `vmpool doctor`, what this host has and lacks."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING

import click

from vmpool import config, doctor, packages
from vmpool.cli import table
from vmpool.cli.progress import Progress
from vmpool.cli.report import ExitCode
from vmpool.cli.state import state_option

if TYPE_CHECKING:
    from pathlib import Path


@click.command()
@state_option
@click.option("--install", is_flag=True, help="Install missing packages first, as root.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(*, state: Path, install: bool, as_json: bool) -> None:
    """Say what this host lacks and how to mend it.

    It prints each thing that vmpool needs, whether it is there, and the command that mends it, and
    exits with 1 when something is missing that vmpool cannot do without. Without --install it
    changes nothing.
    """
    if install:
        with Progress(sys.stderr) as progress:
            progress("looking for missing packages")
            asyncio.run(packages.ensure(progress.note))
    interface = config.load().api
    findings = asyncio.run(doctor.examine(state=state, run=state / "run", interface=interface))
    if as_json:
        table.print_json(doctor.document(findings))
    else:
        click.echo(doctor.render_text(findings))
    if not doctor.healthy(findings):
        click.get_current_context().exit(ExitCode.FAILED)
