"""Rollback: `vmpool rollback`, a sandbox becomes what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vmpool.cli.connection import connects
from vmpool.cli.remote import path

if TYPE_CHECKING:
    from vmpool.cli.remote import Remote


@click.command()
@connects
@click.argument("sandbox")
@click.argument("checkpoint")
def command(remote: Remote, *, sandbox: str, checkpoint: str) -> None:
    """Put a sandbox back to what it was at CHECKPOINT, an id or a name.

    What was done in it since is gone, and what runs in it is broken off.
    """
    remote.once(path("sandboxes", sandbox, "rollback"), {"checkpoint": checkpoint})
