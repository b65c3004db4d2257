"""State: which state directory a command works on."""

from __future__ import annotations

import os
from pathlib import Path

import click


def default_state() -> Path:
    """Return where state is kept when nobody says: the system's place for root, else the user's."""
    if os.geteuid() == 0:
        return Path("/var/lib/vmpool")
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(home) / "vmpool"


state_option = click.option(
    "--state",
    envvar="VMPOOL_STATE",
    type=click.Path(path_type=Path, file_okay=False),
    default=default_state,
    metavar="DIR",
    help="State directory.  [default: /var/lib/vmpool, or ~/.local/state/vmpool if not root]",
)
